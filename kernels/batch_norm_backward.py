"""Gradients of a batch norm in training, with a ReLU behind it, or behind its sum with another tensor, or none.

The normalised input and the output's sign follow from the input and two numbers a channel, so they are computed again;
of a sum the sign is one bit for each element.
Of a short channel one program sums what the gradient needs and goes on to it; longer ones are cut as going forward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .channels import MOST, STAGES, affine_of, cut_for, elements_of, normal_of, numbers_like, part_of, sizes_of
from .tuning import FUSION

__all__ = ["norm_backward"]

# As `ALONE` going forward: 38 instructions an element, 2.8 us.
ALONE = 4 * MOST


@triton.jit
def _gated(
    grad,
    held,
    bits,
    step,
    at,
    inside,
    mean,
    rstd,
    scale,
    shift,
    RELU: tl.constexpr,
    SUM: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient behind the ReLU, and the normalised input. The gate is computed as the forward pass computes it."""
    normal = normal_of(held, at, inside, mean, rstd, NORMAL)
    slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if SUM:
        e = step + tl.arange(0, BLOCK)
        passes = (tl.load(bits + e // 32, mask=inside, other=0) >> (e % 32)) & 1
        slope = tl.where(passes != 0, slope, 0.0)
    elif RELU:
        slope = tl.where(normal * scale + shift <= 0, 0.0, slope)
    return slope, normal


@triton.jit
def _slopes(
    grad,
    held,
    bits,
    begin,
    end,
    channel,
    channels,
    size,
    mean,
    rstd,
    scale,
    shift,
    RELU: tl.constexpr,
    SUM: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of some elements of a channel the sum of gradients, and of gradients times the normalised input."""
    sums, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = elements_of(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, held, bits, step, at, inside, mean, rstd, scale, shift, RELU, SUM, NORMAL, BLOCK)
        sums += slope
        # Behind the end a normalised input is not zero, but the slope is.
        products += slope * normal
    return tl.sum(sums, axis=0), tl.sum(products, axis=0)


@triton.jit
def _slopes_kernel(
    grad,
    held,
    bits,
    weight,
    bias,
    means,
    rstds,
    partial,
    channels,
    size,
    count,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    SUM: tl.constexpr,
    NORMAL: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = affine_of(weight, bias, channel, WEIGHT, BIAS)
    if SUM:
        bits += channel * tl.cdiv(count, 32)
    begin, end = part_of(part, count, PARTS, BLOCK)
    total, product = _slopes(
        grad, held, bits, begin, end, channel, channels, size, mean, rstd, scale, shift, RELU, SUM, NORMAL, BLOCK
    )
    tl.store(partial + channel * PARTS + part, total)
    tl.store(partial + (channels + channel) * PARTS + part, product)


@triton.jit
def _grad_kernel(
    grad,
    held,
    bits,
    weight,
    bias,
    means,
    rstds,
    partial,
    result,
    gated,
    grad_weight,
    grad_bias,
    channels,
    size,
    count,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    SUM: tl.constexpr,
    NORMAL: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = affine_of(weight, bias, channel, WEIGHT, BIAS)
    if SUM:
        bits += channel * tl.cdiv(count, 32)
    begin, end = part_of(part, count, PARTS, BLOCK)
    if PARTS == 1:
        # What is read here is in a cache when it is read again.
        total, product = _slopes(
            grad, held, bits, begin, end, channel, channels, size, mean, rstd, scale, shift, RELU, SUM, NORMAL, BLOCK
        )
    else:
        parts = tl.arange(0, WIDTH)
        sums = partial + channel * PARTS + parts
        total = tl.sum(tl.load(sums, mask=parts < PARTS, other=0.0), axis=0)
        product = tl.sum(tl.load(sums + channels * PARTS, mask=parts < PARTS, other=0.0), axis=0)
    if part == 0:
        tl.store(grad_bias + channel, total)
        tl.store(grad_weight + channel, product)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = elements_of(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, held, bits, step, at, inside, mean, rstd, scale, shift, RELU, SUM, NORMAL, BLOCK)
        if SUM:
            tl.store(gated + at, slope.to(gated.dtype.element_ty), mask=inside)
        number = scale * rstd * (slope - (total + normal * product) / count)
        tl.store(result + at, number.to(result.dtype.element_ty), mask=inside)


def norm_backward(
    grad: Tensor,
    held: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    relu: bool,
    normal: bool = False,
    bits: Tensor | None = None,
    gated: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in the dtype of `grad`, and of weight and bias, float32, of `norm`'s arguments.

    Args:
        bits: of a sum, as `norm` has written them.
        gated: with them, where the gradient behind the sum's ReLU is written to, which is the other tensor's;
            contiguous, of the shape of `grad`.

    Raises:
        ValueError: the gradient is not contiguous, or not of the input's shape.
    """
    channels, size, count = sizes_of(grad)
    if grad.shape != held.shape:
        raise ValueError(f"norm_backward: gradient {tuple(grad.shape)} of an input {tuple(held.shape)}")
    cut, result = cut_for(channels, count, ALONE), torch.empty_like(grad)
    partial = numbers_like(grad, 2, channels, cut.parts) if cut.parts > 1 else None
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    given = (grad, held, bits, weight, bias, mean, rstd, partial)
    flags = {
        "WEIGHT": weight is not None,
        "BIAS": bias is not None,
        "RELU": relu,
        "SUM": bits is not None,
        "NORMAL": normal,
    }
    launch = {"PARTS": cut.parts, "BLOCK": cut.block, "num_warps": cut.warps, "enable_fp_fusion": FUSION}
    with torch.cuda.device(grad.get_device()):
        if cut.parts > 1:
            _slopes_kernel[(channels, cut.parts)](*given, channels, size, count, **flags, **launch)
        _grad_kernel[(channels, cut.parts)](
            *given, result, gated, grad_weight, grad_bias, channels, size, count,
            WIDTH=triton.next_power_of_2(cut.parts), **flags, **launch,
        )  # fmt: skip
    return result, grad_weight, grad_bias
