"""SparseConv2d against nn.Conv2d with a masked weight."""

import pytest
import torch
from torch import nn

from fedsparse.errors import ShapeError
from fedsparse.nn import SparseConv2d

OPTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 3), "dilation": (2, 1)},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "groups": 2, "padding": 2},
    {"kernel_size": 3, "groups": 4, "padding": 1},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 4, "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def same(sparse, dense, x):
    """Outputs and gradients of input, weight and bias agree."""
    one, two = (x.clone().requires_grad_() for _ in range(2))
    y, expected = sparse(one), dense(two)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.values.grad, sparse.pattern.gather(dense.weight.grad), rtol=1e-4, atol=2e-5)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_function(options, mode, pair, generator):
    sparse, dense = pair(nn.Conv2d(4, 8, padding_mode=mode, **options))
    same(sparse, dense, torch.randn(3, 4, 11, 9, generator=generator))


@pytest.mark.parametrize("density", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_any_density(density, bias, pair, generator):
    sparse, dense = pair(nn.Conv2d(4, 8, 3, padding=1, bias=bias), density)
    same(sparse, dense, torch.randn(3, 4, 6, 5, generator=generator))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_without_batch(options, mode, pair, generator):
    sparse, dense = pair(nn.Conv2d(4, 8, padding_mode=mode, **options))
    same(sparse, dense, torch.randn(4, 11, 9, generator=generator))


def test_empty_batch(pair):
    sparse, dense = pair(nn.Conv2d(4, 8, 3))
    same(sparse, dense, torch.empty(0, 4, 6, 6))


def test_channels_last(pair, generator):
    sparse, dense = pair(nn.Conv2d(4, 8, 3, padding=1))
    x = torch.randn(3, 4, 6, 5, generator=generator)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(sparse(last), sparse(x))
    same(sparse, dense, last)
    converted = sparse.to(memory_format=torch.channels_last)
    assert torch.equal(converted(last), sparse(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_to_dense(options, mode, pair, generator):
    sparse, _ = pair(nn.Conv2d(4, 8, padding_mode=mode, **options))
    dense = sparse.eval().to_dense()
    assert type(dense) is nn.Conv2d
    assert not dense.training
    like = nn.Conv2d(4, 8, padding_mode=mode, **options)
    assert repr(dense) == repr(like)
    same(sparse, dense, torch.randn(2, 4, 11, 9, generator=generator))


def test_what_a_layer_shows(some_mask):
    dense = nn.Conv2d(4, 8, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), groups=2, bias=False)
    mask = some_mask(dense.weight)
    sparse = SparseConv2d.from_dense(dense, mask)
    assert torch.equal(sparse.mask, mask)
    assert torch.equal(sparse.weight, dense.weight * mask)
    assert sparse.bias is None
    assert (sparse.stride, sparse.padding, sparse.dilation, sparse.groups) == ((1, 2), (1, 1), (2, 1), 2)
    assert "dilation=(2, 1), groups=2" in repr(sparse)


def test_misuse(pair):
    sparse, _ = pair(nn.Conv2d(4, 8, 3))
    with pytest.raises(ShapeError, match=r"expected \(batch, 4, height, width\)"):
        sparse(torch.ones(1, 3, 5, 5))
    with pytest.raises(ShapeError, match="smaller than the kernel"):
        sparse(torch.ones(1, 4, 2, 5))
    with pytest.raises(ShapeError, match=r"expected \(batch, 4, height, width\)"):
        sparse(torch.ones(5, 5))
