"""Batch norm, alone and with a ReLU behind it, against float64 autograd."""

import pytest
import torch
import torch.nn.functional as F

from fedsparse.kernels.batch_norm import norm, norm_backward, statistics
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")
MOMENTUM, EPS = 0.1, 1e-5


def parameters(channels, generator):
    """Weight, bias, running mean and variance; one weight is negative, one zero."""
    weight = torch.randn(channels, generator=generator)
    weight[0] = -1.0
    weight[-1] = 0.0 if channels > 1 else -1.0
    bias, mean = torch.randn(2, channels, generator=generator)
    variance = torch.rand(channels, generator=generator) + 0.5
    return tuple(t.to(DEVICE) for t in (weight, bias, mean, variance))


@pytest.mark.parametrize("relu", [True, False], ids=["ReLU", "alone"])
@pytest.mark.parametrize(
    ("shape", "far"),
    [
        ((2, 3, 5, 7), 0.0),
        ((4, 1), 0.0),
        ((3, 2, 40, 41), 0.0),  # in two parts
        ((1, 1, 91, 91), 300.0),  # in parts, and far from zero
    ],
)
def test_forward_and_gradients(shape, far, relu, generator):
    x = torch.randn(shape, generator=generator).to(DEVICE) + far
    weight, bias, mean, variance = parameters(shape[1], generator)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    running = [mean.double(), variance.double()]
    normal = F.batch_norm(exact[0], *running, exact[1], exact[2], True, MOMENTUM, EPS)
    wanted, grad = F.relu(normal) if relu else normal, torch.randn(shape, generator=generator).to(DEVICE)
    if relu:
        grad[normal.abs() < 1e-3] = 0  # at the ReLU's edge a rounded gate may go either way
    wanted.backward(grad.double())
    found = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    y = norm(x, *found, weight, bias, relu=relu)
    close = {"rtol": 1e-5, "atol": 2e-5 + far * 1e-6}
    torch.testing.assert_close(y.double(), wanted.detach(), **close)
    torch.testing.assert_close(mean.double(), running[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), running[1], rtol=1e-5, atol=1e-6)
    gradients = norm_backward(grad, x, *found, weight, bias, relu=relu)
    many = x.numel() / shape[1]
    for got, leaf in zip(gradients, exact, strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, rtol=1e-4, atol=1e-5 * many**0.5 + far * 1e-5)


def test_half_precision_is_summed_in_float32(generator):
    x = torch.randn((2, 2, 6, 6), generator=generator).half().to(DEVICE)
    weight, bias, mean, variance = parameters(2, generator)
    wanted = F.relu(F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, MOMENTUM, EPS))
    found = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    y = norm(x, *found, weight, bias, relu=True)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), wanted, rtol=1e-3, atol=1e-4)
    assert norm_backward(x, x, *found, weight, bias, relu=True)[0].dtype == torch.float16
    halves = [t.half() for t in parameters(2, generator)]
    wide = [t.float() for t in halves]
    again = statistics(x, *halves[2:], momentum=MOMENTUM, eps=EPS)
    statistics(x, *wide[2:], momentum=MOMENTUM, eps=EPS)
    assert torch.equal(norm(x, *again, *halves[:2], relu=True), norm(x, *again, *wide[:2], relu=True))
    for half, whole in zip(halves[2:], wide[2:], strict=True):
        assert torch.equal(half, whole.half())


def test_without_parameters_and_running_statistics(generator):
    x = torch.randn((3, 4, 5), generator=generator).to(DEVICE)
    found = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    ones, zeros = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    grad = torch.randn((3, 4, 5), generator=generator).to(DEVICE)
    for weight, bias in ((None, None), (2 * ones, None), (None, 3 * ones)):
        given = ones if weight is None else weight, zeros if bias is None else bias
        assert torch.equal(norm(x, *found, weight, bias, relu=True), norm(x, *found, *given, relu=True))
        mine, theirs = (norm_backward(grad, x, *found, w, b, relu=True) for w, b in ((weight, bias), given))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_from_the_rounded_normalised_input(generator):
    """Of the input no more is left than what is normalised, rounded to another dtype."""
    x = (2 * torch.randn((3, 2, 7, 5), generator=generator) + 1).to(DEVICE)
    weight, bias, *_ = parameters(2, generator)
    mean, rstd = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    rounded = torch.empty_like(x, dtype=torch.float16)
    y = norm(x, mean, rstd, weight, bias, relu=True, rounded=rounded)
    assert torch.equal(y, norm(x, mean, rstd, weight, bias, relu=True))
    normal = (x - mean.view(2, 1, 1)) * rstd.view(2, 1, 1)
    torch.testing.assert_close(rounded, normal.half(), rtol=2e-3, atol=1e-6)
    again = norm(rounded, mean, rstd, weight, bias, relu=True, dtype=torch.float32, normal=True)
    wanted = F.relu(rounded.float() * weight.view(2, 1, 1) + bias.view(2, 1, 1))
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=1e-6)
    grad = torch.randn(x.shape, generator=generator).to(DEVICE)
    grad[y < 1e-2] = 0  # a rounded gate may go either way
    found = norm_backward(grad, rounded, mean, rstd, weight, bias, relu=True, normal=True)
    for mine, exact in zip(found, norm_backward(grad, x, mean, rstd, weight, bias, relu=True), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, rtol=2e-2, atol=2e-2)


def test_refuses_one_element_and_strides():
    with pytest.raises(ValueError, match=r"needs two elements a channel, got an input of shape \(1, 3\)"):
        statistics(torch.zeros(1, 3), None, None, momentum=MOMENTUM, eps=EPS)
    with pytest.raises(ValueError, match="must be contiguous"):
        statistics(torch.zeros(3, 4).t(), None, None, momentum=MOMENTUM, eps=EPS)
    x, ones = torch.rand(4, 3, device=DEVICE), torch.ones(3, device=DEVICE)
    with pytest.raises(ValueError, match=r"gradient \(2, 3\) of an input \(4, 3\)"):
        norm_backward(torch.zeros(2, 3), x, ones, ones, None, None, relu=False)
