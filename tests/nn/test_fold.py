"""Several networks as one: outputs, gradients and training of each as by itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.errors import ConfigError
from fedsparse.nn import Joint, fold, require_foldable, side_by_side, unfold
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


# ---- on the same numbers
def each_loss(outputs, ys):
    return torch.stack([F.cross_entropy(output, y) for output, y in zip(outputs, ys, strict=True)])


@pytest.mark.parametrize("density", [0.4, None], ids=["sparse", "dense"])
def test_joint_networks_step_together_and_alone_in_turn(density, device, generator):
    """Each with an optimiser and a number of steps of its own: 1e-4 of each tensor after seven steps."""
    networks = [network.to(device).train() for network in drawn(plain, generator, density=density)]
    alone = [copy.deepcopy(network) for network in networks]
    joint = Joint(networks)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.02, momentum=0.9) for one in (*networks, *alone)]

    def take(network, optimizer, x, y):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    for turn in range(4):
        xs, ys = batches(generator, device)
        joint.backward(each_loss(joint(xs), ys).sum())
        for optimizer in optimizers[:COUNT]:
            optimizer.step()
        for network, optimizer, x, y in zip(alone, optimizers[COUNT:], xs, ys, strict=True):
            take(network, optimizer, x, y)
        if turn < COUNT:
            x, y = (some[0] for some in batches(generator, device, size=5))
            take(networks[turn], optimizers[turn], x, y)
            take(alone[turn], optimizers[COUNT + turn], x, y)
    joint.part()
    for mine, theirs in zip(networks, alone, strict=True):
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-3)
            assert float(error) < 1e-4, name
            if name.endswith("num_batches_tracked"):
                assert torch.equal(a, b)


def test_joint_networks_share_memory_until_they_part(generator):
    networks = drawn(plain, generator)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    parameters = [list(network.parameters()) for network in networks]
    joint = Joint(networks)
    storages = {network[3].values.untyped_storage().data_ptr() for network in networks}
    assert len(storages) == 1
    joint.part()
    storages = {network[3].values.untyped_storage().data_ptr() for network in networks}
    assert len(storages) == COUNT
    for state, network, same in zip(before, networks, parameters, strict=True):
        assert all(a is b for a, b in zip(network.parameters(), same, strict=True))
        for (name, tensor), old in zip(network.state_dict().items(), state.values(), strict=True):
            assert torch.equal(tensor, old), name


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("density", [0.4, None], ids=["sparse", "dense"])
def test_nan_in_one_network_stays_there(make, density, device, generator):
    """Outputs and gradients of the others are those of a step in which nothing is wrong, to the bit."""
    networks = [network.to(device).train() for network in drawn(make, generator, density=density)]
    xs, ys = batches(generator, device)
    results = []
    for spoilt in (xs[1], torch.full_like(xs[1], torch.nan)):
        tried = [copy.deepcopy(network) for network in networks]
        joint = Joint(tried)
        outputs = joint([xs[0], spoilt, xs[2]])
        joint.backward(each_loss(outputs, ys)[[0, 2]].sum())
        kept = [tried[0], tried[2]]
        gradients = [parameter.grad.clone() for network in kept for parameter in network.parameters()]
        statistics = [buffer.clone() for network in kept for buffer in network.buffers()]
        results.append([outputs[0].detach(), outputs[2].detach(), *gradients, *statistics])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in results[1])


def test_what_is_frozen_stays_so(generator):
    networks = drawn(plain, generator, density=None)
    for network in networks:
        network[0].weight.requires_grad_(False)
    xs, ys = batches(generator, "cpu")
    joint = Joint(networks)
    joint.backward(each_loss(joint(xs), ys).sum())
    assert [network[0].weight.grad for network in networks] == [None] * COUNT
    assert all(network[3].weight.grad is not None for network in networks)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (plain, 8),
        (residual, 8),
        (lambda: fs.models.lenet(in_channels=2), 12),
        (lambda: fs.models.vgg11(in_channels=2, width=4), 32),
        (lambda: fs.sparsify(fs.models.mlp(128), 0.5), 8),
    ],
    ids=["plain", "resnet18", "lenet", "vgg11", "mlp"],
)
def test_models_that_keep_channels_apart_pass_the_trial(make, side, generator):
    model = make().eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    require_foldable(model, torch.randn(4, 2, side, side, generator=generator))
    assert torch.equal(random, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


class Branches(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.join = join

    def forward(self, x):
        return self.join(self.a(x), self.b(x)).flatten(1)


@pytest.mark.parametrize(
    ("join", "words"),
    [
        (lambda a, b: torch.cat([a, b], dim=1), "mixes channels or draws random numbers"),
        (lambda a, b: F.dropout(a + b, 0.5), "mixes channels or draws random numbers"),
        (lambda a, b: a.softmax(dim=1) + b, "mixes channels or draws random numbers"),
        (lambda a, b: (a + b).view(-1, 2, 2, 8, 8).expand(4, 2, 2, 8, 8), "cannot compute networks side by side"),
    ],
    ids=["cat", "dropout", "softmax", "sizes"],
)
def test_models_that_mix_networks_fail_the_trial(join, words, generator):
    with pytest.raises(ConfigError, match=words):
        require_foldable(Branches(join), torch.randn(4, 2, 8, 8, generator=generator))


def _tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def _hooked():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


def _pruned():
    return fs.nn.prune_activations(fs.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5, exclude="none"), 0.5)


def _averaging():
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, momentum=None))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_tied, "uses a parameter in two places"),
        (_hooked, "0 has hooks"),
        (_pruned, "0 prunes its activations"),
        (_averaging, "1 averages over all batches"),
    ],
)
def test_what_a_fold_would_lose_is_refused(make, words):
    network = make()
    with pytest.raises(ConfigError, match=words):
        fold([network, copy.deepcopy(network)])
