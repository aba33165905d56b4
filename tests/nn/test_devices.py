"""Whole networks on a device: training, new masks, largest gradients, checkpoints, memory, streams."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse import pruning
from fedsparse.nn import read_weights, sparse_layers, write_weights
from fedsparse.pattern import Pattern
from tests.devices import CUDA, DEVICES, kernels, plain_products


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _plain_products():
    with plain_products():
        yield


def network(generator: torch.Generator) -> nn.Module:
    """Kernels of 1, 3 and 5, strides, groups, bias and none, batch norm, a residual: `(n, 3, 9, 9)` -> `(n, 6)`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.wide = nn.Conv2d(16, 16, 5, padding=2)
            self.point = nn.Conv2d(16, 24, 1, stride=2)
            self.group = nn.Conv2d(24, 24, 3, padding=1, groups=4)
            self.hidden = nn.Linear(24, 40)
            self.out = nn.Linear(40, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.norm(self.stem(x)))
            x = F.relu(self.wide(x) + x)
            x = F.relu(self.group(F.relu(self.point(x)))).mean((2, 3))
            logits: torch.Tensor = self.out(F.relu(self.hidden(x)))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
        return fs.sparsify(Net(), 0.4, distribution="uniform", exclude="none")


def on(device: str, generator: torch.Generator) -> nn.Module:
    model = network(generator).to(device)
    fs.set_backend(model, kernels(device))
    return model


def batch(generator: torch.Generator, device: str, size: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(size, 3, 9, 9, generator=generator), torch.randint(6, (size,), generator=generator)
    return x.to(device), y.to(device)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def new_masks(model: nn.Module, generator: torch.Generator, density: float = 0.3) -> dict[str, torch.Tensor]:
    """Masks in main memory, of other counts than before."""
    return {name: torch.rand(mask.shape, generator=generator) < density for name, mask in fs.masks(model).items()}


# ---- training
def test_steps_follow_a_dense_float64_network_with_masks(device, generator):
    model = on(device, generator)
    truth = fs.densify(copy.deepcopy(model).cpu()).double()
    masks = {name: mask.cpu() for name, mask in fs.masks(model).items()}
    optimizer, exact = sgd(model), sgd(truth)
    for _ in range(5):
        x, y = batch(generator, "cpu")
        loss = train(model, optimizer, x.to(device), y.to(device))
        exact.zero_grad()
        wanted = F.cross_entropy(truth(x.double()), y)
        wanted.backward()
        weights = dict(truth.named_parameters())
        for name, mask in masks.items():
            weights[name].grad *= mask
        exact.step()
        assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, layer in sparse_layers(model).items():
        torch.testing.assert_close(layer.weight.cpu().double(), weights[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_networks_agree_with_float32(device, dtype, generator):
    model = on(device, generator).eval()
    if device == "cpu":
        fs.set_backend(model, "masked")  # the cpu kernels store float32 alone
    small = copy.deepcopy(model).to(dtype)
    x, _ = batch(generator, device)
    with torch.no_grad():
        wanted, got = model(x), small(x.to(dtype))
    assert got.dtype == dtype
    assert float((got.float() - wanted).norm() / wanted.norm()) < 4e-2


def test_backends_agree_on_every_gradient(device, generator):
    model = on(device, generator)
    twin = copy.deepcopy(model)
    fs.set_backend(twin, "masked")
    x, y = batch(generator, device)
    for one in (model, twin):
        F.cross_entropy(one(x), y).backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        error = (mine.grad - theirs.grad).norm() / theirs.grad.norm()
        assert float(error) < 1e-4, name


def test_the_same_bits_twice(device, generator):
    model = on(device, generator)
    x, y = batch(generator, device)

    def gradients() -> list[torch.Tensor]:
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(x), y).backward()
        return [layer.values.grad for layer in sparse_layers(twin).values()]

    for mine, again in zip(gradients(), gradients(), strict=True):
        assert torch.equal(mine, again)


def test_moving_a_model_moves_what_it_computes_with(device, generator):
    model = network(generator).eval()
    x, _ = batch(generator, "cpu")
    wanted = model(x)
    model.to(device)
    fs.set_backend(model, kernels(device))
    torch.testing.assert_close(model(x.to(device)).cpu(), wanted, rtol=1e-4, atol=1e-5)
    model.cpu()
    fs.set_backend(model, "auto")
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)


def test_layers_that_keep_nothing_and_empty_batches(device, generator):
    model = on(device, generator).eval()
    fs.set_masks(model, {"wide.weight": torch.zeros(16, 16, 5, 5, dtype=torch.bool)})
    x, y = batch(generator, device)
    F.cross_entropy(model(x), y).backward()
    assert model.wide.values.grad.shape == (0,)
    if device == "cpu":
        fs.set_backend(model, "auto")  # the cpu kernels refuse a batch of none
    assert model(x[:0]).shape == (0, 6)


def test_pruned_activations(device, generator):
    model = on(device, generator)
    twin = network(torch.Generator().manual_seed(0))
    twin.load_state_dict(model.state_dict())
    x, y = batch(generator, device)
    for one, inputs, labels in ((model, x, y), (twin, x.cpu(), y.cpu())):
        fs.nn.prune_activations(one, 0.4)
        F.cross_entropy(one(inputs), labels).backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        error = (mine.grad.cpu() - theirs.grad).norm() / theirs.grad.norm()
        assert float(error) < 1e-3, name


# ---- masks
def test_new_masks_carry_values_and_momentum(device, generator):
    model = on(device, generator)
    optimizer = sgd(model)
    train(model, optimizer, *batch(generator, device))
    old = {name: (layer.mask, layer.weight) for name, layer in sparse_layers(model).items()}
    state = {
        name: layer.pattern.scatter(optimizer.state[layer.values]["momentum_buffer"])
        for name, layer in sparse_layers(model).items()
    }
    masks = new_masks(model, generator)
    fs.set_masks(model, masks, optimizer=optimizer, grown=0.25)
    for name, layer in sparse_layers(model).items():
        mask, both = masks[name].to(device), masks[name].to(device) & old[name][0]
        grown = mask & ~old[name][0]
        assert layer.values.device.type == device
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.weight[both], old[name][1][both])
        assert (layer.weight[grown] == 0.25).all()
        momentum = layer.pattern.scatter(optimizer.state[layer.values]["momentum_buffer"])
        assert torch.equal(momentum[both], state[name][both])
        assert not momentum[grown].any()
    train(model, optimizer, *batch(generator, device))
    fs.set_masks(model, {name: mask.to(device) for name, mask in masks.items()}, optimizer=optimizer)


@pytest.mark.parametrize("name", ["wide", "group", "hidden"])
def test_largest_pruned_gradients_are_those_of_a_stable_sort(device, name, generator):
    """Whole numbers: sums are exact in any order, and many tie."""
    layer = getattr(on(device, generator), name)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    x = whole(7, 24) if name == "hidden" else whole(7, 24 if name == "group" else 16, 5, 6)
    with torch.no_grad():
        layer.values.copy_(whole(layer.nnz))
        grad = whole(*layer(x.to(device)).shape)
    with fs.topk_pruned_gradient(layer, 50) as top:
        layer(x.to(device)).backward(grad.to(device))
    weight = layer.weight.cpu().double().requires_grad_()
    if name == "hidden":
        y = F.linear(x.double(), weight)
    else:
        y = F.conv2d(x.double(), weight, None, 1, layer.weight.shape[-1] // 2, 1, 4 if name == "group" else 1)
    (dense,) = torch.autograd.grad(y, weight, grad.double())
    pruned = (~layer.mask.cpu()).view(-1).nonzero().squeeze(1)
    order = torch.sort(dense.view(-1)[pruned].abs(), descending=True, stable=True).indices[:50]
    assert torch.equal(top.indices.cpu(), pruned[order])
    assert torch.equal(top.gradients.cpu().double(), dense.view(-1)[pruned[order]])


def test_a_swap_from_gradients_of_the_device(device, generator):
    model = on(device, generator)
    layer, optimizer = model.wide, sgd(model)
    x, y = batch(generator, device)
    with fs.topk_pruned_gradient(layer, 20) as top:
        F.cross_entropy(model(x), y).backward()
    before = layer.mask
    new = pruning.swap(layer.pattern, layer.values, top.indices, scores=top.gradients, count=20)
    layer.repattern(new, optimizer=optimizer)
    assert layer.nnz == int(before.sum())
    grown = (layer.mask & ~before).view(-1).nonzero().squeeze(1)
    assert torch.equal(grown, top.indices.sort().values)
    assert not layer.weight.view(-1)[grown].any()
    train(model, optimizer, x, y)


@pytest.mark.parametrize("order", ["largest", "largest_magnitude", "smallest_magnitude"])
def test_selection_on_a_device_is_a_stable_sort(device, order, generator):
    scores = torch.randint(-40, 41, (5000,), generator=generator).float()
    among = torch.rand(5000, generator=generator) < 0.5
    ranked = {"largest": scores, "largest_magnitude": scores.abs(), "smallest_magnitude": -scores.abs()}[order]
    candidates = among.nonzero().squeeze(1)
    wanted = candidates[torch.sort(ranked[candidates], descending=True, stable=True).indices[:300]].sort().values
    found = pruning.top(scores.to(device), 300, among=among.to(device), order=order)
    assert torch.equal(found.cpu(), wanted)


# ---- checkpoints
def test_training_goes_on_from_a_checkpoint(device, generator):
    model = on(device, generator)
    optimizer = sgd(model)
    first, second = batch(generator, device), batch(generator, device)
    train(model, optimizer, *first)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, map_location=device, weights_only=True)
    fresh = on(device, torch.Generator().manual_seed(1))
    fs.set_masks(fresh, new_masks(fresh, generator, 0.5))
    fresh.load_state_dict(saved["model"])
    resumed = sgd(fresh)
    resumed.load_state_dict(saved["optimizer"])
    assert train(model, optimizer, *second) == pytest.approx(train(fresh, resumed, *second), rel=1e-6)
    for (name, mine), theirs in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), rtol=1e-5, atol=1e-6), name


def test_weights_travel_between_devices_as_bytes(device, generator):
    model = on(device, generator)
    weights = read_weights(model)
    blob = fs.wire.encode(fs.wire.Payload("train", 0, weights))
    got = fs.wire.decode(blob).weights
    for target in ("cpu", device):
        other = network(torch.Generator().manual_seed(2)).to(target)
        write_weights(other, got)
        for (name, mine), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(mine.cpu(), theirs.cpu()), name
            assert theirs.device.type == (target if not name.endswith("kept") else "cpu"), name


def test_patterns_follow_the_device(device, generator):
    model = on(device, generator)
    for name, layer in sparse_layers(model).items():
        assert layer.pattern.column.device.type == device
        assert layer.pattern == Pattern.from_mask(layer.mask.cpu()), name
        assert torch.equal(layer.pattern.gather(layer.weight), layer.values.detach())


# ---- memory
def test_peak_bytes(device):
    count = 8 << 20
    with fs.measure(device) as reading:
        held = torch.ones(count, device=device)
        more = torch.ones(count, device=device)
        del more
    assert reading.peak_bytes.source == "measured"
    assert 8 * count <= reading.peak_bytes.value < 8 * count + (1 << 20)
    with fs.measure(device) as reading:
        held += 1
    assert reading.peak_bytes.value < 1 << 20
    assert reading.seconds.value > 0


def test_no_dense_weight_of_a_sparse_layer_is_held(device):
    """Steps of a layer of 4096 x 4096 at density 0.01 stay far below the 67 MB of its dense weight."""
    kernels(device)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(4096, 4096, generator=generator) < 0.01
    pattern = Pattern.from_mask(mask)
    layer = fs.nn.SparseLinear(pattern, torch.ones(pattern.nnz), None).to(device)
    layer.set_backend(kernels(device))
    x = torch.randn(8, 4096, generator=generator).to(device)
    layer(x).sum().backward()
    with fs.measure(device) as reading:
        layer(x).sum().backward()
    assert reading.peak_bytes.value < 8e6


# ---- streams
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_kernels_follow_the_callers_stream(device, generator):
    model = on(device, generator).eval()
    x, y = batch(generator, device)
    F.cross_entropy(model(2 * x), y).backward()
    wanted = [layer.values.grad.clone() for layer in sparse_layers(model).values()]
    model.zero_grad()
    late = torch.full_like(x, torch.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # about 50 ms: whoever works on another stream is early
        late.copy_(2 * x)
        F.cross_entropy(model(late), y).backward()
    torch.cuda.synchronize()
    for layer, gradient in zip(sparse_layers(model).values(), wanted, strict=True):
        assert torch.equal(layer.values.grad, gradient)
