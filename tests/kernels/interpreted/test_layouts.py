"""Norms and ReLUs on batch-innermost activations, which their kernels take for one contiguous picture."""

import pytest
import torch

from fedsparse.backends import device_norms
from fedsparse.backends.device_norms import TRITON, Norm
from fedsparse.backends.layout import BATCH_INNERMOST
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SHAPES = [(8, 3, 5, 7), (16, 5), (8, 1, 1, 1), (8, 1, 65, 64)]  # the last in parts


@pytest.mark.parametrize("shape", SHAPES)
def test_relus(shape, generator):
    x, grad = torch.randn(2, *shape, generator=generator).to(DEVICE)
    laid = BATCH_INNERMOST.of(x)
    y, bits = TRITON.relu(laid, inplace=False)
    found = TRITON.gate(BATCH_INNERMOST.of(grad), bits)
    assert torch.equal(y, x.relu())
    assert torch.equal(found, torch.where(x > 0, grad, 0))
    assert BATCH_INNERMOST.holds(y)
    assert BATCH_INNERMOST.holds(found)
    own = laid.clone()
    assert TRITON.relu(own, inplace=True)[0] is own
    assert torch.equal(own, y)


@pytest.mark.parametrize("rounds", [False, True], ids=["input", "rounded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape, rounds, generator):
    """Sums run in another order than in contiguous tensors; the rest is the same."""
    x, grad, other = torch.randn(3, *shape, generator=generator).to(DEVICE)
    weight, bias = torch.randn(2, shape[1], generator=generator).to(DEVICE)
    results = []
    for laid, slope in ((x, grad), (BATCH_INNERMOST.of(x), BATCH_INNERMOST.of(grad))):
        running = torch.zeros(shape[1], device=DEVICE), torch.ones(shape[1], device=DEVICE)
        mean, rstd = TRITON.statistics(laid, running, 0.1, 1e-5)
        rounded = torch.empty_like(laid, dtype=torch.bfloat16) if rounds else None
        y = TRITON.norm(Norm(laid, mean, rstd, weight, bias), x.dtype, rounded, relu=True)
        held = laid if rounded is None else rounded
        found = TRITON.norm_backward(slope, Norm(held, mean, rstd, weight, bias), relu=True)
        other = device_norms.lies(laid).of(other)
        total, bits = TRITON.norm_sum(Norm(laid, mean, rstd, weight, bias), rounded, other)
        sums = TRITON.norm_sum_backward(slope, Norm(held, mean, rstd, weight, bias), bits)
        results.append((y, held, total, found[0], sums[0], sums[3], *found[1:], *sums[1:3], *running, mean, rstd))
    close = 1e-2 if rounds else 1e-5  # a number between two of bfloat16 may go either way
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close)
    assert all(BATCH_INNERMOST.holds(tensor) for tensor in results[1][:6])
