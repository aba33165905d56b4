"""Saving, copying, moving and repatterning of sparse layers, and optimisers on their values."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.errors import BackendError, PatternError
from fedsparse.nn import SparseConv2d, SparseLinear
from fedsparse.pattern import Pattern


@pytest.fixture(params=["linear", "conv2d"])
def layer(request, some_mask):
    if request.param == "linear":
        dense = nn.Linear(9, 7)
        return SparseLinear.from_dense(dense, some_mask(dense.weight))
    dense = nn.Conv2d(3, 5, 3, padding=1)
    return SparseConv2d.from_dense(dense, some_mask(dense.weight))


def example(layer):
    shape = (4, 9) if isinstance(layer, SparseLinear) else (4, 3, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def other(layer, density=0.5, seed=2):
    """A layer of the same kind with another mask and other values."""
    dense = layer.to_dense()
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=torch.Generator().manual_seed(seed)))
    return type(layer).from_dense(
        dense, torch.rand(dense.weight.shape, generator=torch.Generator().manual_seed(seed + 1)) < density
    )


def train(layer, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        layer(example(layer)).square().mean().backward()
        optimizer.step()


# ---- state_dict
def test_state_dict_holds_values_bias_and_mask(layer):
    state = layer.state_dict()
    assert list(state) == ["values", "bias", "kept"]
    assert state["kept"].dtype == torch.uint8
    assert state["kept"].numel() == (layer.pattern.size + 7) // 8
    bits = [bool(byte >> (7 - i) & 1) for byte in state["kept"].tolist() for i in range(8)]
    assert bits[: layer.pattern.size] == layer.mask.view(-1).tolist()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_load_brings_another_mask(density, assign, layer):
    source = other(layer, density)
    layer.load_state_dict(source.state_dict(), assign=assign)
    assert torch.equal(layer.mask, source.mask)
    assert torch.equal(layer.weight, source.weight)
    x = example(layer)
    assert torch.equal(layer(x), source(x))
    source.repattern(other(layer, 0.3, seed=8).pattern)
    assert layer.nnz == int(layer.mask.sum())


def test_load_inside_a_model_leaves_the_state_dict_alone(net):
    model, source = (fs.sparsify(net(), d, exclude="none") for d in (0.5, 0.8))
    state = source.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    assert model.load_state_dict(state) == ([], [])
    assert before.keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(model.eval()(x), source.eval()(x))


def test_optimiser_keeps_its_parameter_after_a_load(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.load_state_dict(other(layer).state_dict())
    before = layer.values.detach().clone()
    train(layer, optimizer)
    assert not torch.equal(before, layer.values)


def test_missing_and_wrong_masks(layer):
    state = layer.state_dict()
    del state["kept"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "kept"'):
        layer.load_state_dict(state)
    result = layer.load_state_dict(state, strict=False)
    assert result.missing_keys == ["kept"]
    with pytest.raises(RuntimeError, match=r"kept has 2 bytes; a weight of shape .* needs"):
        layer.load_state_dict(state | {"kept": torch.zeros(2, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match="size mismatch for values"):
        layer.load_state_dict(layer.state_dict() | {"values": torch.zeros(layer.nnz + 1)})
    dense = layer.to_dense().state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"kept"'):
        layer.load_state_dict(dense)


# ---- copies
def twins(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return {"deepcopy": copy.deepcopy(layer), "torch.save": torch.load(file, weights_only=False)}


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_a_copy_is_independent(how, layer):
    x, mask, weight = example(layer), layer.mask, layer.weight
    y = layer(x)
    twin = twins(layer)[how]
    assert torch.equal(twin(x), y)
    assert twin.pattern == layer.pattern
    twin.repattern(other(layer).pattern, grown=3.0)
    with torch.no_grad():
        twin.values.fill_(1.0)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), y)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    assert twin.values.grad.shape == (twin.nnz,)
    assert layer.values.grad is None


def test_pickle(layer):
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(example(layer)), layer(example(layer)))
    assert twin.pattern == layer.pattern


def test_state_dict_through_a_file(layer, tmp_path):
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    twin = other(layer)
    twin.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(twin.weight, layer.weight)


# ---- dtype
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype, layer):
    pattern, dense = layer.pattern, layer.to_dense().to(dtype)
    x = example(layer).to(dtype)
    layer.to(dtype)
    assert layer.values.dtype == dtype
    assert layer.pattern == pattern
    assert [t.dtype for t in layer.index] == [t.dtype for t in pattern.index]
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, dense(x))
    y.sum().backward()
    assert layer.values.grad.dtype == dtype
    dense(x).sum().backward()
    torch.testing.assert_close(layer.values.grad, pattern.gather(dense.weight.grad))


def test_a_moved_layer_can_change_its_pattern(layer):
    moved = copy.deepcopy(layer).to(torch.float64)
    new = other(layer).pattern
    moved.repattern(new)
    assert moved.pattern == new
    torch.testing.assert_close(moved.weight, layer.weight.double() * new.mask())


# ---- repattern
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_state_has_length_nnz_and_follows(name, layer):
    optimizer = OPTIMISERS[name](layer.parameters())
    train(layer, optimizer, steps=2)
    state = optimizer.state[layer.values]
    entries = {key: t for key, t in state.items() if isinstance(t, torch.Tensor) and t.ndim}
    assert entries
    assert {tuple(t.shape) for t in entries.values()} == {(layer.nnz,)}
    steps = {key: float(t) for key, t in state.items() if isinstance(t, torch.Tensor) and not t.ndim}

    old, parameter, new = layer.pattern, layer.values, other(layer).pattern
    wanted = {key: new.gather(old.scatter(t.clone())) for key, t in entries.items()}
    weight = layer.weight
    layer.repattern(new, optimizer=optimizer, grown=0.25)
    assert layer.values is parameter
    assert layer.values.grad is None
    assert torch.equal(layer.mask, new.mask())
    expected = torch.where(old.mask(), weight, 0.25)[new.mask()]
    assert torch.equal(layer.values, expected)
    state = optimizer.state[layer.values]
    assert all(torch.equal(state[key], tensor) for key, tensor in wanted.items())
    assert {key: float(t) for key, t in state.items() if isinstance(t, torch.Tensor) and not t.ndim} == steps
    train(layer, optimizer, steps=2)
    assert optimizer.state[layer.values] is state


def test_repattern_before_the_first_step(layer):
    optimizer = torch.optim.Adam(layer.parameters())
    layer.repattern(other(layer).pattern, optimizer=optimizer)
    assert not optimizer.state
    train(layer, optimizer)


def test_repattern_to_nothing_and_back(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    train(layer, optimizer)
    full = torch.ones(layer.pattern.shape, dtype=torch.bool)
    layer.repattern(Pattern.from_mask(~full), optimizer=optimizer)
    assert layer.nnz == 0
    train(layer, optimizer)
    layer.repattern(Pattern.from_mask(full), optimizer=optimizer, grown=0.5)
    assert torch.equal(layer.weight, torch.full(layer.pattern.shape, 0.5))
    assert not optimizer.state[layer.values]["momentum_buffer"].any()
    train(layer, optimizer)


def test_repattern_refuses_another_shape_and_changes_nothing(layer):
    weight = layer.weight
    with pytest.raises(PatternError, match="values cannot move"):
        layer.repattern(Pattern.from_mask(torch.ones(2, 2, dtype=torch.bool)))
    assert torch.equal(layer.weight, weight)


# ---- backends
def test_backends_by_name(layer):
    x = example(layer)
    expected = layer.to_dense()(x)
    for name in ("reference", "cpu", "masked", "auto"):
        layer.set_backend(name)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(BackendError, match="unknown backend 'fast'; expected one of auto, "):
        layer.set_backend("fast")
    assert layer.backend == "auto"
    layer.double().set_backend("cpu")
    with pytest.raises(BackendError, match="cannot compute this"):
        layer(x.double())
