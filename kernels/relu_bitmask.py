"""ReLU that remembers one bit for each element: its gradient needs neither input nor output."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = ["cost", "relu", "relu_backward"]

BLOCK = 2048  # elements of a program, 64 words of bits


@triton.jit
def _relu_kernel(x, y, bits, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(x + at, mask=at < n, other=0.0)
    # NaN passes, and so does its gradient, as in torch
    passes = (number > 0) | (number != number)
    tl.store(y + at, tl.where(passes, number, 0.0), mask=at < n)
    flags = tl.reshape(passes.to(tl.int32), (BLOCK // 32, 32))
    words = tl.sum(flags << tl.arange(0, 32)[None, :], axis=1)
    tl.store(bits + tl.program_id(0).to(tl.int64) * (BLOCK // 32) + tl.arange(0, BLOCK // 32), words)


@triton.jit
def _relu_backward_kernel(grad, bits, result, n, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * BLOCK + place
    word = tl.load(bits + tl.program_id(0).to(tl.int64) * (BLOCK // 32) + place // 32)
    passes = (word >> (place % 32)) & 1
    slope = tl.load(grad + at, mask=(at < n) & (passes != 0), other=0.0)
    tl.store(result + at, slope, mask=at < n)


def relu(x: Tensor) -> tuple[Tensor, Tensor]:
    """`relu(x)`, and `(ceil(n / 2048) * 64,)` int32 bits: bit e % 32 of word e // 32 is set where element e passes.

    Raises:
        ValueError: x is not contiguous.
    """
    if not x.is_contiguous():
        raise ValueError(f"relu: x must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}")
    y, programs = torch.empty_like(x), triton.cdiv(x.numel(), BLOCK)
    bits = torch.empty(programs * BLOCK // 32, dtype=torch.int32, device=x.device)
    if programs:
        with torch.cuda.device(x.get_device()):
            _relu_kernel[(programs,)](x, y, bits, x.numel(), BLOCK=BLOCK, enable_fp_fusion=FUSION)
    return y, bits


def relu_backward(grad: Tensor, bits: Tensor) -> Tensor:
    """Gradient of the input from that of the output, contiguous, and the bits of `relu`.

    Raises:
        ValueError: the gradient is not contiguous, or the bits are of another number of elements.
    """
    programs = triton.cdiv(grad.numel(), BLOCK)
    if not grad.is_contiguous() or bits.numel() != programs * BLOCK // 32:
        raise ValueError(
            f"relu_backward: a contiguous gradient of {grad.numel()} elements needs {programs * BLOCK // 32} words of "
            f"bits, got {bits.numel()} and strides {grad.stride()}"
        )
    result = torch.empty_like(grad)
    if programs:
        with torch.cuda.device(grad.get_device()):
            _relu_backward_kernel[(programs,)](grad, bits, result, grad.numel(), BLOCK=BLOCK, enable_fp_fusion=FUSION)
    return result


def cost(n: int, element_size: int) -> tuple[float, float]:
    """Bytes remembered of n elements, and bytes that forward and backward move."""
    return n / 8, 4 * n * element_size + n / 4
