"""Batch normalisation, with a ReLU behind it or not: training forward and backward, of which only the input is saved.

The normalised input, the output's sign and the output itself follow from the input and two numbers a channel, so the
backward pass recomputes them. Statistics come first and by themselves: who normalises may wait until it is known
whether a ReLU follows.

Sums of a short channel are one program's, which goes on to what is computed of them: one launch. Longer channels are
cut into parts, a program each. Means and squared deviations of parts are merged pairwise-exactly (Chan, Golub and
LeVeque 1983), in a fixed order: no atomics.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION, splits_for

__all__ = ["norm", "norm_backward", "statistics"]

LEAST, MOST = 1024, 4096  # elements of a step
THREAD = 8  # and of each of its threads
STAGES = tl.constexpr(2)  # steps under way: one is computed while the next is read
MOST_PARTS = 64
# Elements of a channel that one program sums by itself. Compiled for sm_90 it issues 12 instructions an element going
# forward and 38 back, of the 128 a clock that a multiprocessor can: 1.8 and 2.8 us at 1.755 GHz for channels as long as
# these. Parts would take two launches, 4 us and more.
ALONE_FORWARD, ALONE_BACK = 8 * MOST, 4 * MOST


@triton.jit
def _elements(step, end, channel, channels, size, BLOCK: tl.constexpr):
    """Offsets of a step's elements of a channel, numbered image by image, and which there are."""
    e = step + tl.arange(0, BLOCK)
    image = e // size
    return (image * channels + channel).to(tl.int64) * size + (e - image * size), e < end


@triton.jit
def _part(number, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """First element of a part and the one after its last."""
    steps = tl.cdiv(tl.cdiv(count, BLOCK), PARTS)
    begin = number * steps * BLOCK
    return begin, tl.minimum(begin + steps * BLOCK, count)


@triton.jit
def _merged(partial, channel, channels, count, PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Mean of a channel and the sum of squares around it, from those of its parts."""
    part = tl.arange(0, WIDTH)
    inside = part < PARTS
    begin, end = _part(part, count, PARTS, BLOCK)
    share = tl.maximum(end - begin, 0).to(tl.float32)
    mean = tl.load(partial + channel * PARTS + part, mask=inside, other=0.0)
    squares = tl.load(partial + (channels + channel) * PARTS + part, mask=inside, other=0.0)
    share = tl.where(inside, share, 0.0)
    middle = tl.sum(share * mean, axis=0) / count
    return middle, tl.sum(squares + share * (mean - middle) * (mean - middle), axis=0)


@triton.jit
def _moments(x, begin, end, channel, channels, size, BLOCK: tl.constexpr):
    """Mean of some elements of a channel, and the sum of squares around it."""
    at, inside = _elements(begin, end, channel, channels, size, BLOCK)
    # Sums of squares around the mean of the first step keep their digits, wherever the channel lies.
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    around = tl.sum(first, axis=0) / tl.maximum(tl.minimum(end - begin, BLOCK), 1)
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        off = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - around, 0.0)
        sums += off
        squares += off * off
    total, share = tl.sum(sums, axis=0), tl.maximum(end - begin, 1)
    return around + total / share, tl.sum(squares, axis=0) - total * total / share


@triton.jit
def _moments_kernel(x, partial, channels, size, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel, part = tl.program_id(0), tl.program_id(1)
    begin, end = _part(part, count, PARTS, BLOCK)
    mean, squares = _moments(x, begin, end, channel, channels, size, BLOCK)
    tl.store(partial + channel * PARTS + part, mean)
    tl.store(partial + (channels + channel) * PARTS + part, squares)


@triton.jit
def _statistics_kernel(
    x,
    partial,
    means,
    rstds,
    running_mean,
    running_var,
    channels,
    size,
    count,
    eps,
    momentum,
    unbiased,
    TRACKS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0)
    if PARTS == 1:
        mean, squares = _moments(x, 0, count, channel, channels, size, BLOCK)
    else:
        mean, squares = _merged(partial, channel, channels, count, PARTS, WIDTH, BLOCK)
    variance = squares / count
    tl.store(means + channel, mean)
    tl.store(rstds + channel, 1.0 / tl.sqrt(variance + eps))
    if TRACKS:
        old_mean, old_var = tl.load(running_mean + channel), tl.load(running_var + channel)
        tl.store(running_mean + channel, old_mean + momentum * (mean - old_mean))
        tl.store(running_var + channel, old_var + momentum * (unbiased * variance - old_var))


@triton.jit
def _affine(weight, bias, channel, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Factor and term of a channel, 1 and 0 where there are none."""
    scale, shift = 1.0, 0.0
    if WEIGHT:
        scale = tl.load(weight + channel).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + channel).to(tl.float32)
    return scale, shift


@triton.jit
def _normal(held, at, inside, mean, rstd, NORMAL: tl.constexpr):
    """The normalised input, of which `held` is that or the input itself."""
    number = tl.load(held + at, mask=inside, other=0.0).to(tl.float32)
    if not NORMAL:
        number = (number - mean) * rstd
    return number


@triton.jit
def _norm_kernel(
    held,
    y,
    rounded,
    weight,
    bias,
    means,
    rstds,
    channels,
    size,
    count,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    NORMAL: tl.constexpr,
    ROUND: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = _affine(weight, bias, channel, WEIGHT, BIAS)
    begin, end = _part(part, count, PARTS, BLOCK)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        normal = _normal(held, at, inside, mean, rstd, NORMAL)
        if ROUND:
            tl.store(rounded + at, normal.to(rounded.dtype.element_ty), mask=inside)
        result = normal * scale + shift
        if RELU:
            result = tl.where(result <= 0, 0.0, result)  # NaN passes
        tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gated(grad, held, at, inside, mean, rstd, scale, shift, RELU: tl.constexpr, NORMAL: tl.constexpr):
    """The gradient behind the ReLU, and the normalised input. The gate is computed as the forward pass computes it."""
    normal = _normal(held, at, inside, mean, rstd, NORMAL)
    slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        slope = tl.where(normal * scale + shift <= 0, 0.0, slope)
    return slope, normal


@triton.jit
def _slopes(
    grad,
    held,
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
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of some elements of a channel the sum of gradients, and of gradients times the normalised input."""
    sums, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, held, at, inside, mean, rstd, scale, shift, RELU, NORMAL)
        sums += slope
        # Behind the end a normalised input is not zero, but the slope is.
        products += slope * normal
    return tl.sum(sums, axis=0), tl.sum(products, axis=0)


@triton.jit
def _slopes_kernel(
    grad,
    held,
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
    NORMAL: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = _affine(weight, bias, channel, WEIGHT, BIAS)
    begin, end = _part(part, count, PARTS, BLOCK)
    total, product = _slopes(
        grad, held, begin, end, channel, channels, size, mean, rstd, scale, shift, RELU, NORMAL, BLOCK
    )
    tl.store(partial + channel * PARTS + part, total)
    tl.store(partial + (channels + channel) * PARTS + part, product)


@triton.jit
def _grad_kernel(
    grad,
    held,
    weight,
    bias,
    means,
    rstds,
    partial,
    result,
    grad_weight,
    grad_bias,
    channels,
    size,
    count,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    NORMAL: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = _affine(weight, bias, channel, WEIGHT, BIAS)
    begin, end = _part(part, count, PARTS, BLOCK)
    if PARTS == 1:
        # What is read here is in a cache when it is read again.
        total, product = _slopes(
            grad, held, begin, end, channel, channels, size, mean, rstd, scale, shift, RELU, NORMAL, BLOCK
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
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, held, at, inside, mean, rstd, scale, shift, RELU, NORMAL)
        number = scale * rstd * (slope - (total + normal * product) / count)
        tl.store(result + at, number.to(result.dtype.element_ty), mask=inside)


def statistics(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean of every channel and the reciprocal of its deviation, `(channels,)` float32 each.

    Args:
        x: `(batch, channels, ...)` contiguous, at least two elements a channel.
        running_mean, running_var: `(channels,)`, updated in place; both or none.
        momentum: weight of the batch in the running statistics.

    Raises:
        ValueError: x is not contiguous, or has fewer than two elements a channel.
    """
    channels, size, count = _sizes(x)
    if count < 2:
        raise ValueError(f"norm: a variance needs two elements a channel, got an input of shape {tuple(x.shape)}")
    cut, tracks = _cut(channels, count, ALONE_FORWARD), running_mean is not None
    partial = _numbers(x, 2, channels, cut.parts) if cut.parts > 1 else None
    mean, rstd = _numbers(x, channels), _numbers(x, channels)
    with torch.cuda.device(x.get_device()):
        if cut.parts > 1:
            _moments_kernel[(channels, cut.parts)](
                x, partial, channels, size, count, PARTS=cut.parts, BLOCK=cut.block, num_warps=cut.warps,
                enable_fp_fusion=FUSION,
            )  # fmt: skip
        _statistics_kernel[(channels,)](
            x, partial, mean, rstd, running_mean, running_var, channels, size, count, eps, momentum,
            count / (count - 1), TRACKS=tracks, PARTS=cut.parts, WIDTH=triton.next_power_of_2(cut.parts),
            BLOCK=cut.block, num_warps=cut.warps if cut.parts == 1 else 1, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return mean, rstd


def norm(
    held: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    relu: bool,
    dtype: torch.dtype | None = None,
    normal: bool = False,
    rounded: Tensor | None = None,
) -> Tensor:
    """`(x - mean) * rstd * weight + bias`, or the ReLU of it.

    Args:
        held: x, `(batch, channels, ...)` contiguous; with `normal` `(x - mean) * rstd`, rounded to a dtype.
        weight, bias: `(channels,)`, or None for 1 and 0.
        relu: whether a ReLU follows.
        dtype: of the result; None: that of `held`.
        rounded: where `(x - mean) * rstd` is written to, in its dtype; contiguous.

    Raises:
        ValueError: `held` is not contiguous.
    """
    channels, size, count = _sizes(held)
    y, cut = torch.empty_like(held, dtype=dtype), _cut(channels, count)
    with torch.cuda.device(held.get_device()):
        _norm_kernel[(channels, cut.parts)](
            held, y, rounded, weight, bias, mean, rstd, channels, size, count,
            WEIGHT=weight is not None, BIAS=bias is not None, RELU=relu, NORMAL=normal, ROUND=rounded is not None,
            PARTS=cut.parts, BLOCK=cut.block, num_warps=cut.warps, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return y


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in the dtype of `grad`, and of weight and bias, float32, of `norm`'s arguments.

    Raises:
        ValueError: the gradient is not contiguous, or not of the input's shape.
    """
    channels, size, count = _sizes(grad)
    if grad.shape != held.shape:
        raise ValueError(f"norm_backward: gradient {tuple(grad.shape)} of an input {tuple(held.shape)}")
    cut, result = _cut(channels, count, ALONE_BACK), torch.empty_like(grad)
    partial = _numbers(grad, 2, channels, cut.parts) if cut.parts > 1 else None
    grad_weight, grad_bias = torch.empty_like(mean), torch.empty_like(mean)
    given = (grad, held, weight, bias, mean, rstd, partial)
    flags = {"WEIGHT": weight is not None, "BIAS": bias is not None, "RELU": relu, "NORMAL": normal}
    launch = {"PARTS": cut.parts, "BLOCK": cut.block, "num_warps": cut.warps, "enable_fp_fusion": FUSION}
    with torch.cuda.device(grad.get_device()):
        if cut.parts > 1:
            _slopes_kernel[(channels, cut.parts)](*given, channels, size, count, **flags, **launch)
        _grad_kernel[(channels, cut.parts)](
            *given, result, grad_weight, grad_bias, channels, size, count, WIDTH=triton.next_power_of_2(cut.parts),
            **flags, **launch,
        )  # fmt: skip
    return result, grad_weight, grad_bias


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Channels, elements of a channel in one image, and in all."""
    if not x.is_contiguous():
        raise ValueError(f"norm: tensors must be contiguous, got strides {x.stride()} for {tuple(x.shape)}")
    channels, count = x.shape[1], x.numel() // x.shape[1]
    return channels, count // max(x.shape[0], 1), count


class _Cut(NamedTuple):
    """How programs share a channel.

    Attributes:
        parts: programs of a channel.
        block: elements of a step.
        warps: of a program.
    """

    parts: int
    block: int
    warps: int


def _cut(channels: int, count: int, alone: int = 0) -> _Cut:
    """As many programs as fill a device, a whole step each; one for a channel of up to `alone` elements."""
    fills = min(splits_for(channels, triton.cdiv(count, MOST)), MOST_PARTS)
    parts = 1 if count <= alone else fills
    block = min(max(triton.next_power_of_2(triton.cdiv(count, parts)), LEAST), MOST)
    return _Cut(parts, block, block // (32 * THREAD))


def _numbers(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
