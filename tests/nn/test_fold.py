"""Several networks as one: outputs, gradients and training of each as by itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.errors import ConfigError
from fedsparse.nn import fold, side_by_side, unfold
from fedsparse.pattern import Pattern
from tests.devices import DEVICES, kernels, plain_products

COUNT = 3


@pytest.fixture(params=DEVICES)
def device(request):
    with plain_products():
        yield request.param


def drawn(make, generator, *, density=0.4):
    """Networks with one topology and numbers of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
        first = make()
        if density:
            fs.sparsify(first, density, distribution="uniform")
    networks = [copy.deepcopy(first) for _ in range(COUNT)]
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
    return networks


def plain():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


def residual():
    return fs.models.resnet18(num_classes=4, width=4, in_channels=2)


def batches(generator, device, size=16):
    xs = [torch.randn(size, 2, 8, 8, generator=generator).to(device) for _ in range(COUNT)]
    ys = [torch.randint(4, (size,), generator=generator).to(device) for _ in range(COUNT)]
    return xs, ys


def losses(wide, xs, ys):
    """Loss of each network."""
    logits = wide(side_by_side(xs)).view(len(ys[0]), COUNT, -1)
    return torch.stack([F.cross_entropy(logits[:, place], y) for place, y in enumerate(ys)])


@pytest.mark.parametrize("density", [0.4, None], ids=["sparse", "dense"])
@pytest.mark.parametrize("make", [plain, residual])
def test_training_is_that_of_each_network_by_itself(make, density, device, generator):
    """Equal up to the order of sums: 1e-4 of each tensor after four steps."""
    networks = [network.to(device) for network in drawn(make, generator, density=density)]
    for network in networks if density else ():
        fs.set_backend(network, kernels(device))
    alone = [copy.deepcopy(network) for network in networks]
    wide = fold(networks)
    steps = torch.optim.SGD(wide.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    each = [torch.optim.SGD(one.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3) for one in alone]
    for _ in range(4):
        xs, ys = batches(generator, device)
        steps.zero_grad()
        found = losses(wide, xs, ys)
        found.sum().backward()
        steps.step()
        for place, (one, optimizer) in enumerate(zip(alone, each, strict=True)):
            optimizer.zero_grad()
            loss = F.cross_entropy(one(xs[place]), ys[place])
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(found[place], loss, rtol=1e-4, atol=1e-5)
    unfold(wide, networks)
    for mine, theirs in zip(networks, alone, strict=True):
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-3)
            assert float(error) < 1e-4, name


def test_kept_weights_are_those_of_every_network_in_turn(generator):
    networks = drawn(plain, generator)
    wide = fold(networks)
    layer, first = wide[3], networks[0][3]
    assert (layer.groups, layer.nnz) == (2 * COUNT, COUNT * first.nnz)
    assert torch.equal(layer.weight, torch.cat([network[3].weight for network in networks]))
    assert layer.pattern == Pattern.from_mask(first.mask.repeat(COUNT, 1, 1, 1))
    assert wide[7].pixel.groups == COUNT


def test_folding_changes_nothing_and_unfolding_gives_back(generator):
    networks = drawn(plain, generator)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    wide = fold(networks)
    unfold(wide, networks)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    for state, network in zip(before, networks, strict=True):
        for (name, tensor), old in zip(network.state_dict().items(), state.values(), strict=True):
            assert torch.equal(tensor, old), name


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x * self.scale)


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (lambda: [], "nothing to fold"),
        (lambda: [nn.Linear(2, 2)], "a bare Linear cannot be folded"),
        (lambda: [nn.Sequential(nn.LayerNorm(4))], "0 is a LayerNorm with weight, bias, which cannot be folded"),
        (lambda: [nn.Sequential(nn.Dropout())], "0 is a Dropout, which cannot be folded"),
        (lambda: [Scaled()], "the model is a Scaled with scale, which cannot be folded"),
        (lambda: [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3))], "must be alike: 0 is Linear"),
    ],
)
def test_what_cannot_be_folded_is_refused(networks, words):
    with pytest.raises(ConfigError, match=words):
        fold(networks())


def test_masks_must_be_equal(generator):
    networks = drawn(plain, generator)
    name, mask = next(iter(fs.masks(networks[1]).items()))
    fs.set_masks(networks[1], {name: ~mask})
    with pytest.raises(ConfigError, match="must have equal masks"):
        fold(networks)
