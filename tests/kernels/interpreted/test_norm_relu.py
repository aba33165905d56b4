"""Fused normalisation and ReLU against float64 autograd."""

import pytest
import torch
import torch.nn.functional as F

from fedsparse.kernels.norm_relu import norm_relu, norm_relu_backward
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


@pytest.mark.parametrize(
    ("shape", "far"),
    [
        ((2, 3, 5, 7), 0.0),
        ((4, 1), 0.0),
        ((3, 2, 40, 41), 0.0),  # in two parts
        ((1, 1, 91, 91), 300.0),  # in parts, and far from zero
    ],
)
def test_forward_and_gradients(shape, far, generator):
    x = torch.randn(shape, generator=generator).to(DEVICE) + far
    weight, bias, mean, variance = parameters(shape[1], generator)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    running = [mean.double(), variance.double()]
    normal = F.batch_norm(exact[0], *running, exact[1], exact[2], True, MOMENTUM, EPS)
    wanted, grad = F.relu(normal), torch.randn(shape, generator=generator).to(DEVICE)
    grad[normal.abs() < 1e-3] = 0  # at the ReLU's edge a rounded gate may go either way
    wanted.backward(grad.double())
    y, saved = norm_relu(x, weight, bias, mean, variance, momentum=MOMENTUM, eps=EPS)
    close = {"rtol": 1e-5, "atol": 2e-5 + far * 1e-6}
    torch.testing.assert_close(y.double(), wanted.detach(), **close)
    torch.testing.assert_close(mean.double(), running[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), running[1], rtol=1e-5, atol=1e-6)
    found = norm_relu_backward(grad, saved, weight, bias)
    many = x.numel() / shape[1]
    for got, leaf in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, rtol=1e-4, atol=1e-5 * many**0.5 + far * 1e-5)


def test_half_precision_is_summed_in_float32(generator):
    x = torch.randn((2, 2, 6, 6), generator=generator).half().to(DEVICE)
    weight, bias, mean, variance = parameters(2, generator)
    wanted = F.relu(F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, MOMENTUM, EPS))
    y, saved = norm_relu(x, weight, bias, mean, variance, momentum=MOMENTUM, eps=EPS)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), wanted, rtol=1e-3, atol=1e-4)
    assert saved.x is x
    assert norm_relu_backward(x, saved, weight, bias)[0].dtype == torch.float16


def test_refuses_one_element_and_strides(generator):
    weight, bias, mean, variance = parameters(3, generator)
    with pytest.raises(ValueError, match=r"needs two elements a channel, got an input of shape \(1, 3\)"):
        norm_relu(torch.zeros(1, 3), weight, bias, mean, variance, momentum=MOMENTUM, eps=EPS)
    with pytest.raises(ValueError, match="must be contiguous"):
        norm_relu(torch.zeros(3, 4).t(), weight, bias, mean, variance, momentum=MOMENTUM, eps=EPS)
    saved = norm_relu(torch.rand(4, 3, device=DEVICE), weight, bias, mean, variance, momentum=MOMENTUM, eps=EPS)[1]
    with pytest.raises(ValueError, match=r"gradient \(2, 3\) of an input \(4, 3\)"):
        norm_relu_backward(torch.zeros(2, 3), saved, weight, bias)
