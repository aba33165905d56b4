"""The largest pruned units, against a stable sort of units of the dense gradient in float64."""

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.nn import SparseConv2d, SparseLinear
from fedsparse.ops import units
from fedsparse.pattern import Pattern, parse

LAYERS = {
    "linear": (lambda: nn.Linear(20, 13), (6, 20)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), groups=2), (3, 4, 5, 6)),
    "pointwise": (lambda: nn.Conv2d(5, 8, 1), (2, 5, 3, 3)),
}


def integers(shape, generator):
    """Whole numbers of which most are 0, so that gradients are exact and tie."""
    return torch.randint(-3, 4, shape, generator=generator).div(3, rounding_mode="trunc").float()


def expected(gradient, pattern, k):
    """Positions of the best pruned units, one after the other, while they fit."""
    tiling = pattern.granularity.tiling(pattern.shape)
    members = [tiling.positions(torch.tensor([unit])) for unit in range(tiling.count)]
    mask = pattern.mask().view(-1)
    pruned = [m for m in members if not mask[m[0]]]
    pruned.sort(key=lambda m: -float(gradient.view(-1)[m].square().sum() / len(m)))
    found = []
    for m in pruned:
        if len(found) + len(m) > k:
            break
        found += m.tolist()
    return found


@pytest.mark.parametrize(("backend", "chunk"), [("cpu", 1 << 18), ("masked", 1), ("masked", 1 << 18)])
@pytest.mark.parametrize("granularity", ["vector:2", "vector:4", "block:3", "channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_stable_sort_of_units(name, granularity, backend, chunk, generator, monkeypatch):
    monkeypatch.setattr(units, "_CHUNK", chunk)
    make, shape = LAYERS[name]
    dense, unit = make(), parse(granularity)
    tiling = unit.tiling(dense.weight.shape)
    kept = torch.rand(tiling.count, generator=generator) < 0.3
    mask = tiling.spread(kept).view(dense.weight.shape)
    kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    layer = kind.from_dense(dense, mask, granularity=granularity)
    layer.set_backend(backend)
    x = integers(shape, generator)
    weights = integers(layer(x).shape, generator)
    twin = layer.to_dense().double()
    (twin(x.double()) * weights.double()).sum().backward()
    pruned = int((~mask).sum())
    for k in (0, 1, tiling.size, pruned // 2, pruned, pruned + 9):
        with fs.topk_pruned_gradient(layer, k) as top:
            (layer(x) * weights).sum().backward()
        assert top.indices.tolist() == expected(twin.weight.grad, layer.pattern, k)
        assert torch.equal(top.gradients.double(), twin.weight.grad.view(-1)[top.indices])


def test_of_nm_single_weights_are_found(generator):
    scores = torch.rand(6, 8, generator=generator)
    unit = parse("nm:2:4")
    mask = Pattern.from_flat((6, 8), unit.fixed_choice(scores), unit).mask()
    dense = nn.Linear(8, 6)
    layers = [SparseLinear.from_dense(dense, mask, granularity=text) for text in ("nm:2:4", "element")]
    x = torch.randn(5, 8, generator=generator)
    found = []
    for layer in layers:
        with fs.topk_pruned_gradient(layer, 7) as top:
            layer(x).square().sum().backward()
        found.append(top.indices)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_have_the_dtype_of_the_values(dtype, generator):
    nothing = torch.zeros(8, 3, 3, 3, dtype=torch.bool)
    layer = SparseConv2d.from_dense(nn.Conv2d(3, 8, 3), nothing, granularity="vector:4").to(dtype)
    with fs.topk_pruned_gradient(layer, 61) as top:
        layer(integers((16, 3, 5, 5), generator).to(dtype)).sum().backward()
    assert (top.gradients.dtype, top.indices.dtype) == (dtype, torch.int64)
    assert len(top.indices) == len(top.gradients) == 60


def test_of_normalised_convolutions(generator):
    model = fs.nn.without_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))
    fs.sparsify(model, 0.5, granularity="vector:4", exclude="none")
    (layer,) = fs.nn.sparse_layers(model).values()
    x, pruned = torch.randn(4, 3, 6, 6, generator=generator), layer.pattern.size - layer.nnz
    dense = []
    with fs.nn.dense_gradients({"w": layer}, lambda _, gradient: dense.append(gradient)):
        model(x).square().sum().backward()
    with fs.topk_pruned_gradient(layer, pruned) as top:
        model(x).square().sum().backward()
    assert sorted(top.indices.tolist()) == (~layer.mask).view(-1).nonzero().squeeze(1).tolist()
    assert torch.allclose(top.gradients, dense[0].view(-1)[top.indices], rtol=1e-3, atol=1e-3)
    assert top.indices[:4].tolist() == expected(dense[0].double(), layer.pattern, 4)
