"""ReLU with a bitmask against torch's."""

import pytest
import torch

from fedsparse.kernels.relu_bitmask import cost, gate, relu
from tests.kernels.device import DEVICE

EDGES = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, -torch.nan]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (31,), (2048,), (3, 5, 150), (0, 4)])
def test_equals_torch(shape, dtype, generator):
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    if x.numel() > 30:
        x.view(-1)[:6] = torch.tensor(EDGES, device=DEVICE)
    x.requires_grad_()
    wanted, grad = torch.relu(x), torch.randn(shape, generator=generator).to(DEVICE, dtype)
    wanted.backward(grad)
    y, bits = relu(x.detach())
    torch.testing.assert_close(y, wanted.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(gate(grad, bits), x.grad)
    assert bits.numel() == -(-x.numel() // 32)
    own = x.detach().clone()
    assert relu(own, inplace=True)[0] is own
    torch.testing.assert_close(own, y, rtol=0, atol=0, equal_nan=True)


def test_bytes_are_what_cost_says():
    assert relu(torch.zeros(8192, device=DEVICE))[1].nbytes == cost(8192, 4)[0]


def test_more_bits_than_elements(generator):
    """Those of kernels/activation_rows.py come in groups of 512."""
    x = torch.randn(40, generator=generator).to(DEVICE)
    bits = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    bits[:2] = torch.tensor([-(1 << 31), 0b101])
    kept = torch.zeros(40, device=DEVICE)
    kept[[31, 32, 34]] = x[[31, 32, 34]]
    assert torch.equal(gate(x, bits), kept)


def test_refuses_strides_and_too_few_bits():
    with pytest.raises(ValueError, match="relu: x must be contiguous, got strides"):
        relu(torch.zeros(3, 4).t())
    with pytest.raises(ValueError, match="of 65 elements needs 3 words of bits, got 2"):
        gate(torch.zeros(65), torch.zeros(2, dtype=torch.int32))
