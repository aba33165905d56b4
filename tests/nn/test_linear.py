"""SparseLinear against nn.Linear with a masked weight."""

import pytest
import torch
from torch import nn

from fedsparse.errors import PatternError, ShapeError
from fedsparse.nn import SparseLinear


def same(sparse, dense, x):
    """Outputs and gradients of input, weight and bias agree."""
    one, two = (x.clone().requires_grad_() for _ in range(2))
    y, expected = sparse(one), dense(two)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.values.grad, sparse.pattern.gather(dense.weight.grad), rtol=1e-4, atol=1e-5)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 3)])
def test_same_function(lead, bias, density, pair, generator):
    sparse, dense = pair(nn.Linear(11, 7, bias=bias), density)
    same(sparse, dense, torch.randn(*lead, 11, generator=generator))


@pytest.mark.parametrize("lead", [(0,), (0, 3), (2, 0)])
def test_no_rows(lead, pair):
    sparse, dense = pair(nn.Linear(11, 7))
    same(sparse, dense, torch.empty(*lead, 11))


def test_what_a_layer_shows(some_mask):
    dense = nn.Linear(11, 7)
    mask = some_mask(dense.weight)
    sparse = SparseLinear.from_dense(dense.eval(), mask)
    assert torch.equal(sparse.mask, mask)
    assert torch.equal(sparse.weight, dense.weight * mask)
    assert torch.equal(sparse.values, dense.weight[mask])
    assert torch.equal(sparse.bias, dense.bias)
    assert not sparse.weight.requires_grad
    assert sparse.nnz == sparse.values.numel() == int(mask.sum())
    assert sparse.density == pytest.approx(mask.float().mean().item())
    assert str(sparse.granularity) == "element"
    assert not sparse.training
    assert {name for name, _ in sparse.named_parameters()} == {"values", "bias"}
    assert f"shape=(7, 11), nnz={sparse.nnz}" in repr(sparse)
    assert isinstance(sparse.values, nn.Parameter)


def test_shares_no_memory_with_the_dense_layer(some_mask):
    for density in (0.4, 1.0):
        dense = nn.Linear(11, 7)
        mask = some_mask(dense.weight, density)
        sparse = SparseLinear.from_dense(dense, mask)
        before = sparse.weight, sparse.bias.clone(), sparse.mask
        with torch.no_grad():
            dense.weight.zero_()
            dense.bias.zero_()
        mask.logical_not_()
        twin = sparse.to_dense()
        with torch.no_grad():
            twin.weight.zero_()
            twin.bias.zero_()
        assert torch.equal(sparse.weight, before[0])
        assert torch.equal(sparse.bias, before[1])
        assert torch.equal(sparse.mask, before[2])


@pytest.mark.parametrize("bias", [True, False])
def test_to_dense(bias, pair, generator):
    sparse, _ = pair(nn.Linear(11, 7, bias=bias))
    dense = sparse.eval().to_dense()
    assert type(dense) is nn.Linear
    assert (dense.in_features, dense.out_features, dense.bias is None) == (11, 7, not bias)
    assert not dense.training
    assert dense.weight.requires_grad
    same(sparse, dense, torch.randn(3, 11, generator=generator))


def test_misuse():
    dense = nn.Linear(11, 7)
    mask = torch.ones(7, 11, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"SparseLinear expects inputs of shape \(\.\.\., 11\), got \(2, 7\)"):
        SparseLinear.from_dense(dense, mask)(torch.ones(2, 7))
    with pytest.raises(PatternError, match=r"shape \(11, 7\) cannot gather from a tensor of shape \(7, 11\)"):
        SparseLinear.from_dense(dense, mask.T)
    with pytest.raises(PatternError, match=r"must be a bool tensor, got torch\.int64"):
        SparseLinear.from_dense(dense, mask.long())
    with pytest.raises(PatternError, match="unknown granularity 'tile'"):
        SparseLinear.from_dense(dense, mask, granularity="tile")
