"""ReLU that remembers one bit for each element: its gradient needs neither input nor output.

Bits stand as kernels/activation_rows.py writes them, so that `gate` also cuts a tensor down to what was marked there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = ["cost", "gate", "relu"]

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
    word = tl.program_id(0).to(tl.int64) * (BLOCK // 32) + tl.arange(0, BLOCK // 32)
    tl.store(bits + word, words, mask=word * 32 < n)


@triton.jit
def _gate_kernel(x, bits, result, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + at // 32, mask=at < n, other=0)
    passes = (word >> (at % 32).to(tl.int32)) & 1
    number = tl.load(x + at, mask=passes != 0, other=0.0)
    tl.store(result + at, number, mask=at < n)


def relu(x: Tensor, *, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """`relu(x)`, in the memory of x or not, and `(ceil(n / 32),)` int32 bits: bit e % 32 of word e // 32 is set where
    element e passes.

    Raises:
        ValueError: x is not contiguous.
    """
    if not x.is_contiguous():
        raise ValueError(f"relu: x must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}")
    y = x if inplace else torch.empty_like(x)
    bits = torch.empty(triton.cdiv(x.numel(), 32), dtype=torch.int32, device=x.device)
    if x.numel():
        with torch.cuda.device(x.get_device()):
            _relu_kernel[_grid(x)](x, y, bits, x.numel(), BLOCK=BLOCK, enable_fp_fusion=FUSION)
    return y, bits


def gate(x: Tensor, bits: Tensor) -> Tensor:
    """x where its bit is set and 0 elsewhere: of a gradient of `relu`'s output, that of the input.

    Args:
        x: contiguous.
        bits: int32, at least `ceil(n / 32)` words.

    Raises:
        ValueError: x is not contiguous, or there are fewer bits than elements.
    """
    if not x.is_contiguous() or bits.numel() * 32 < x.numel():
        raise ValueError(
            f"gate: a contiguous tensor of {x.numel()} elements needs {triton.cdiv(x.numel(), 32)} words of bits, got "
            f"{bits.numel()} and strides {x.stride()}"
        )
    result = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device(x.get_device()):
            _gate_kernel[_grid(x)](x, bits, result, x.numel(), BLOCK=BLOCK, enable_fp_fusion=FUSION)
    return result


def cost(n: int, element_size: int) -> tuple[float, float]:
    """Bytes remembered of n elements, and bytes that forward and backward move."""
    return n / 8, 4 * n * element_size + n / 4


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)
