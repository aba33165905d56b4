"""ReLU with a bitmask against torch's."""

import pytest
import torch

from fedsparse.kernels.relu_bitmask import cost, relu, relu_backward
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
    assert torch.equal(relu_backward(grad, bits), x.grad)
    assert bits.numel() * 4 == -(-x.numel() // 2048) * cost(2048, 4)[0]


def test_refuses_strides_and_other_bits():
    with pytest.raises(ValueError, match="relu: x must be contiguous, got strides"):
        relu(torch.zeros(3, 4).t())
    with pytest.raises(ValueError, match="of 12 elements needs 64 words of bits, got 3"):
        relu_backward(torch.zeros(12), torch.zeros(3, dtype=torch.int32))
