"""Products for those who hold their own parameters, against torch's dense ones."""

import pytest
import torch
import torch.nn.functional as F

from fedsparse import functional
from fedsparse.errors import BackendError, ShapeError
from fedsparse.pattern import Pattern

BACKENDS = ["auto", "reference", "masked", "cpu"]


def weight_of(shape, generator, density=0.3):
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < density)
    values = torch.randn(pattern.nnz, generator=generator, requires_grad=True)
    return pattern, values, torch.randn(shape[0], generator=generator, requires_grad=True)


def check(sparse, dense, leaves):
    """Same outputs, and same gradients of every leaf."""
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, max(1, sparse.numel())).reshape(sparse.shape) if sparse.numel() else sparse
    found = torch.autograd.grad((sparse * weights).sum(), leaves)
    wanted = torch.autograd.grad((dense * weights).sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 5), (2, 1, 3)])
def test_linear(lead, backend, generator):
    pattern, values, bias = weight_of((6, 9), generator)
    x = torch.randn(*lead, 9, generator=generator, requires_grad=True)
    y = functional.linear(x, values, pattern, bias, backend=backend)
    check(y, F.linear(x, pattern.scatter(values), bias), (x, values, bias))


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
def test_linear_of_nothing(lead, generator):
    pattern, values, bias = weight_of((6, 9), generator)
    x = torch.randn(*lead, 9, requires_grad=True)
    y = functional.linear(x, values, pattern, bias)
    assert y.shape == (*lead, 6)
    grads = torch.autograd.grad(y.sum(), (x, values, bias))
    assert grads[0].shape == x.shape
    assert not grads[1].any()
    assert not grads[2].any()


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 3), "padding": (0, 2), "dilation": (2, 1)},
    {"padding": "same"},
    {"padding": "same", "dilation": (1, 3)},
    {"padding": "valid", "stride": 3},
    {"groups": 2, "padding": (4, 5)},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_conv2d(kernel, options, backend, generator):
    pattern, values, bias = weight_of((6, 4 // options.get("groups", 1), *kernel), generator)
    x = torch.randn(3, 4, 10, 11, generator=generator, requires_grad=True)
    y = functional.conv2d(x, values, pattern, bias, backend=backend, **options)
    check(y, F.conv2d(x, pattern.scatter(values), bias, **options), (x, values, bias))


def test_conv2d_without_batch_or_bias(generator):
    pattern, values, _ = weight_of((5, 3, 3, 3), generator)
    x = torch.randn(3, 8, 8, generator=generator, requires_grad=True)
    check(functional.conv2d(x, values, pattern), F.conv2d(x, pattern.scatter(values)), (x, values))


def test_conv2d_in_any_memory_format(generator):
    pattern, values, bias = weight_of((5, 3, 3, 3), generator)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    plain = functional.conv2d(x, values, pattern, bias)
    last = functional.conv2d(x.to(memory_format=torch.channels_last), values, pattern, bias)
    assert torch.equal(plain, last)


def test_misuse(generator):
    pattern, values, bias = weight_of((6, 9), generator)
    for x in (torch.ones(2, 8), torch.ones(())):
        with pytest.raises(ShapeError, match=r"does not fit a weight of shape \(6, 9\); expected \(\.\.\., 9\)"):
            functional.linear(x, values, pattern, bias)
    with pytest.raises(BackendError, match="unknown backend 'fast'"):
        functional.linear(torch.ones(2, 9), values, pattern, bias, backend="fast")
    pattern, values, bias = weight_of((6, 2, 3, 3), generator)
    x = torch.ones(1, 2, 8, 8)
    with pytest.raises(ShapeError, match="6 output channels cannot be split into 4 groups"):
        functional.conv2d(torch.ones(1, 8, 8, 8), values, pattern, groups=4)
    with pytest.raises(ShapeError, match=r"padding 'full' is unknown; expected 'same', 'valid' or numbers"):
        functional.conv2d(x, values, pattern, padding="full")
    with pytest.raises(ShapeError, match=r"padding='same' needs stride 1, got \(2, 2\)"):
        functional.conv2d(x, values, pattern, padding="same", stride=2)
    with pytest.raises(ShapeError, match=r"expected \(batch, 2, height, width\)"):
        functional.conv2d(x[0, 0], values, pattern)


@pytest.mark.parametrize(
    "options", [{"stride": 0}, {"dilation": 0}, {"padding": -1}, {"groups": 0}, {"stride": (1, 2, 3)}], ids=str
)
def test_impossible_geometry(options, generator):
    pattern, values, bias = weight_of((6, 2, 3, 3), generator)
    with pytest.raises(ShapeError, match=next(iter(options))):
        functional.conv2d(torch.ones(1, 2, 8, 8), values, pattern, bias, backend="reference", **options)
