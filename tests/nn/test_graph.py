"""A captured training step: everything but the capture itself on the CPU, the capture on a device."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse import _native
from fedsparse.errors import BackendError, ShapeError
from fedsparse.nn import capture_step
from fedsparse.pattern import Pattern


def network(generator: torch.Generator) -> nn.Module:
    torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 5),
    )
    return fs.sparsify(model, 0.4, distribution="uniform", exclude="none")


def batch(generator: torch.Generator, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 6, 6, generator=generator), torch.randint(5, (size,), generator=generator)


def other_masks(model: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """As many kept weights of every layer, elsewhere."""
    moved = {}
    for name, mask in fs.masks(model).items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        moved[name] = mask.view(-1)[order].view(mask.shape)
    return moved


def play(work, warmup, between):
    """Takes the place of the device: what is replayed is computed again, into the captured result."""
    for _ in range(warmup):
        work()
    between()
    result = work().clone()
    between()  # a capture computes nothing
    return result, lambda: result.copy_(work())


def captured(model, optimizer, x, y):
    return capture_step(model, optimizer, lambda x, y: F.cross_entropy(model(x), y), (x, y), record=play)


def train(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def test_capturing_trains_nothing_and_replaying_trains_as_usual(generator):
    model = network(generator)
    twin = copy.deepcopy(model)
    optimizer, plain = sgd(model), sgd(twin)
    x, y = batch(generator)
    step = captured(model, optimizer, x, y)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    for round_ in range(4):
        x, y = batch(generator)
        assert torch.equal(step(x, y), train(twin, plain, x, y))
        if round_ == 1:
            masks = other_masks(model, generator)
            fs.set_masks(model, masks, optimizer=optimizer)
            fs.set_masks(twin, masks, optimizer=plain)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_state_that_was_there_is_kept(generator):
    model = network(generator)
    optimizer = sgd(model)
    x, y = batch(generator)
    train(model, optimizer, x, y)
    before = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    captured(model, optimizer, x, y)
    after = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert any(float(b.abs().sum()) > 0 for b in before)


def test_inputs_are_copied_and_must_fit(generator):
    model = network(generator)
    x, y = batch(generator)
    step = captured(model, sgd(model), x, y)
    with pytest.raises(ShapeError, match=r"captured for inputs \[\(\(4, 3, 6, 6\), torch.float32\)"):
        step(*batch(generator, 3))
    with pytest.raises(ShapeError, match="capture another one"):
        step(x.double(), y)
    seen = x.clone()
    step(x, y)
    assert torch.equal(x, seen)


def test_what_a_graph_would_not_notice_is_refused(generator):
    model = network(generator)
    optimizer, (x, y) = sgd(model), batch(generator)
    step = captured(model, optimizer, x, y)
    optimizer.param_groups[0]["lr"] = 0.01
    with pytest.raises(BackendError, match="settings of the optimiser have changed"):
        step(x, y)
    optimizer.param_groups[0]["lr"] = 0.1
    step(x, y)
    name, mask = next(iter(fs.masks(model).items()))
    mask.view(-1)[int((~mask).view(-1).nonzero()[0])] = True
    fs.set_masks(model, {name: mask}, optimizer=optimizer)
    with pytest.raises(BackendError, match="another number of weights"):
        step(x, y)


def test_a_device_is_needed(generator):
    model = network(generator)
    with pytest.raises(BackendError, match="needs its inputs on a CUDA device, got one on cpu"):
        capture_step(model, sgd(model), lambda x, y: F.cross_entropy(model(x), y), batch(generator))


# ---- addresses


def addresses(layer: fs.nn.SparseLayer, optimizer: torch.optim.Optimizer) -> list[int]:
    tensors = (layer.values, *layer.index, optimizer.state[layer.values]["momentum_buffer"])
    return [tensor.data_ptr() for tensor in tensors]


def test_equal_counts_stay_where_they_are(generator):
    model = network(generator)
    optimizer = sgd(model)
    train(model, optimizer, *batch(generator))
    layers = fs.nn.sparse_layers(model)
    for layer in layers.values():
        layer.keep_addresses()
    before = {name: addresses(layer, optimizer) for name, layer in layers.items()}
    held = {name: layer.pattern for name, layer in layers.items()}
    old_masks = {name: pattern.mask() for name, pattern in held.items()}
    old_digests = {name: pattern.digest for name, pattern in held.items()}
    masks = other_masks(model, generator)
    fs.set_masks(model, masks, optimizer=optimizer)
    for name, layer in layers.items():
        assert addresses(layer, optimizer) == before[name]
        assert torch.equal(layer.mask, masks[name])
        assert layer.pattern == Pattern.from_mask(masks[name])
        assert all(torch.equal(a, b) for a, b in zip(layer.index, layer.pattern.index, strict=True))
        # a pattern that someone holds is immutable
        assert torch.equal(held[name].mask(), old_masks[name])
        fresh = Pattern.from_mask(old_masks[name])
        assert held[name].digest == old_digests[name] == fresh.digest
        assert all(torch.equal(a, b) for a, b in zip(held[name].index, fresh.index, strict=True))


def test_values_and_state_stay_in_place_in_ordinary_layers_too(generator):
    model = network(generator)
    optimizer = sgd(model)
    train(model, optimizer, *batch(generator))
    layer = model[3]
    before = addresses(layer, optimizer)
    fs.set_masks(model, other_masks(model, generator), optimizer=optimizer)
    after = addresses(layer, optimizer)
    assert (after[0], after[-1]) == (before[0], before[-1])


def test_a_given_pattern_is_not_overwritten_later(generator):
    model = network(generator)
    layer = model[3]
    layer.keep_addresses()
    given = Pattern.from_mask(other_masks(model, generator)["3.weight"])
    digest = given.digest
    layer.repattern(given)
    layer.repattern(Pattern.from_mask(other_masks(model, generator)["3.weight"]))
    assert Pattern.from_mask(given.mask()).digest == digest


def test_copies_share_nothing_with_a_fixed_layer(generator):
    model = network(generator)
    for layer in fs.nn.sparse_layers(model).values():
        layer.keep_addresses()
    twin = copy.deepcopy(model)
    masks = fs.masks(twin)
    fs.set_masks(model, other_masks(model, generator))
    for name, mask in fs.masks(twin).items():
        assert torch.equal(mask, masks[name])
    x, _ = batch(generator)
    twin.eval()
    assert torch.allclose(twin(x), fs.densify(copy.deepcopy(twin))(x), atol=1e-5)


def test_a_checkpoint_goes_into_a_fixed_layer(generator):
    model = network(generator)
    twin = copy.deepcopy(model)
    fs.set_masks(twin, other_masks(twin, generator))
    for layer in fs.nn.sparse_layers(model).values():
        layer.keep_addresses()
    before = [tensor.data_ptr() for layer in fs.nn.sparse_layers(model).values() for tensor in layer.index]
    model.load_state_dict(twin.state_dict())
    after = [tensor.data_ptr() for layer in fs.nn.sparse_layers(model).values() for tensor in layer.index]
    assert before == after
    for name, mask in fs.masks(twin).items():
        assert torch.equal(fs.masks(model)[name], mask)


# ---- on a device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("keep", [None, 0.5, 1.0])
@pytest.mark.parametrize("backend", ["cuda", "masked"])
def test_a_graph_trains_as_single_launches_do(generator, backend, keep, monkeypatch):
    if backend == "cuda" and not _native.extension().built_with_cuda:
        pytest.skip("the extension was built without CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = network(generator).cuda()
    fs.set_backend(model, backend)
    twin = copy.deepcopy(fs.nn.prune_activations(model, keep))
    optimizer, plain = sgd(model), sgd(twin)
    x, y = (tensor.cuda() for tensor in batch(generator))
    step = capture_step(model, optimizer, lambda x, y: F.cross_entropy(model(x), y), (x, y))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    for round_ in range(6):
        x, y = (tensor.cuda() for tensor in batch(generator))
        torch.testing.assert_close(step(x, y).clone(), train(twin, plain, x, y), rtol=1e-4, atol=1e-5)
        if round_ in (1, 3):
            masks = other_masks(model, generator)
            fs.set_masks(model, masks, optimizer=optimizer)
            fs.set_masks(twin, masks, optimizer=plain)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-3, atol=1e-4)
