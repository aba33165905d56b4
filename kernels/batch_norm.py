"""Batch normalisation in training, with a ReLU behind it, or behind its sum with another tensor, or none: forward.

Of the batch only the input has to be held, see batch_norm_backward.py. Statistics come first and by themselves: who
normalises may wait until it is known whether a ReLU follows.

The sums of a short channel are one program's, which goes on to what is computed of them: one launch. Longer channels
are cut into parts, a program each. Means and squared deviations of parts are merged pairwise-exactly (Chan, Golub and
LeVeque 1983), in a fixed order: no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .channels import MOST, STAGES, affine_of, cut_for, elements_of, normal_of, numbers_like, part_of, sizes_of
from .tuning import FUSION

__all__ = ["norm", "statistics"]

# Elements of a channel that one program sums by itself. Compiled for sm_90 it issues 12 instructions an element, of the
# 128 a clock that a multiprocessor can: 1.8 us at 1.755 GHz for one as long as this. Parts take two launches, 4 us.
ALONE = 8 * MOST


@triton.jit
def _merged(partial, channel, channels, count, PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Mean of a channel and the sum of squares around it, from those of its parts."""
    part = tl.arange(0, WIDTH)
    inside = part < PARTS
    begin, end = part_of(part, count, PARTS, BLOCK)
    share = tl.maximum(end - begin, 0).to(tl.float32)
    mean = tl.load(partial + channel * PARTS + part, mask=inside, other=0.0)
    squares = tl.load(partial + (channels + channel) * PARTS + part, mask=inside, other=0.0)
    share = tl.where(inside, share, 0.0)
    middle = tl.sum(share * mean, axis=0) / count
    return middle, tl.sum(squares + share * (mean - middle) * (mean - middle), axis=0)


@triton.jit
def _moments(x, begin, end, channel, channels, size, BLOCK: tl.constexpr):
    """Mean of some elements of a channel, and the sum of squares around it."""
    at, inside = elements_of(begin, end, channel, channels, size, BLOCK)
    # Sums of squares around the mean of the first step keep their digits, wherever the channel lies.
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    around = tl.sum(first, axis=0) / tl.maximum(tl.minimum(end - begin, BLOCK), 1)
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = elements_of(step, end, channel, channels, size, BLOCK)
        off = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - around, 0.0)
        sums += off
        squares += off * off
    total, share = tl.sum(sums, axis=0), tl.maximum(end - begin, 1)
    return around + total / share, tl.sum(squares, axis=0) - total * total / share


@triton.jit
def _moments_kernel(x, partial, channels, size, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel, part = tl.program_id(0), tl.program_id(1)
    begin, end = part_of(part, count, PARTS, BLOCK)
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
    batches,
    channels,
    size,
    count,
    eps,
    momentum,
    unbiased,
    TRACKS: tl.constexpr,
    COUNTS: tl.constexpr,
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
    if COUNTS:
        first = channel == 0
        tl.store(batches, tl.load(batches, mask=first, other=0) + 1, mask=first)


@triton.jit
def _mark(bits, result, channel, count, step, BLOCK: tl.constexpr):
    """Writes which elements of a step pass a ReLU, a bit each: words of a channel follow one another."""
    flags = tl.reshape((result <= 0).to(tl.int32) ^ 1, (BLOCK // 32, 32))
    words = tl.sum(flags << tl.arange(0, 32)[None, :], axis=1)
    word, most = step // 32 + tl.arange(0, BLOCK // 32), tl.cdiv(count, 32)
    tl.store(bits + channel * most + word, words, mask=word < most)


@triton.jit
def _norm_kernel(
    held,
    y,
    rounded,
    other,
    bits,
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
    SUM: tl.constexpr,
    NORMAL: tl.constexpr,
    ROUND: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = affine_of(weight, bias, channel, WEIGHT, BIAS)
    begin, end = part_of(part, count, PARTS, BLOCK)
    for step in tl.range(begin, end, BLOCK, num_stages=STAGES):
        at, inside = elements_of(step, end, channel, channels, size, BLOCK)
        normal = normal_of(held, at, inside, mean, rstd, NORMAL)
        if ROUND:
            tl.store(rounded + at, normal.to(rounded.dtype.element_ty), mask=inside)
        result = normal * scale + shift
        if SUM:
            result += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
            _mark(bits, result, channel, count, step, BLOCK)
        if RELU:
            result = tl.where(result <= 0, 0.0, result)  # NaN passes
        tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


def statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None = None,
    *,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Mean of every channel and the reciprocal of its deviation, `(channels,)` float32 each.

    Args:
        x: `(batch, channels, ...)` contiguous, at least two elements a channel.
        running_mean, running_var: `(channels,)`, updated in place; both or none.
        batches: `()` int64, which 1 is added to; or none.
        momentum: weight of the batch in the running statistics.

    Raises:
        ValueError: x is not contiguous, or has fewer than two elements a channel.
    """
    channels, size, count = sizes_of(x)
    if count < 2:
        raise ValueError(f"norm: a variance needs two elements a channel, got an input of shape {tuple(x.shape)}")
    cut, tracks = cut_for(channels, count, ALONE), running_mean is not None
    partial = numbers_like(x, 2, channels, cut.parts) if cut.parts > 1 else None
    mean, rstd = numbers_like(x, channels), numbers_like(x, channels)
    with torch.cuda.device(x.get_device()):
        if cut.parts > 1:
            _moments_kernel[(channels, cut.parts)](
                x, partial, channels, size, count, PARTS=cut.parts, BLOCK=cut.block, num_warps=cut.warps,
                enable_fp_fusion=FUSION,
            )  # fmt: skip
        _statistics_kernel[(channels,)](
            x, partial, mean, rstd, running_mean, running_var, batches, channels, size, count, eps, momentum,
            count / (count - 1), TRACKS=tracks, COUNTS=batches is not None, PARTS=cut.parts,
            WIDTH=triton.next_power_of_2(cut.parts), BLOCK=cut.block, num_warps=cut.warps if cut.parts == 1 else 1,
            enable_fp_fusion=FUSION,
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
    other: Tensor | None = None,
    bits: Tensor | None = None,
) -> Tensor:
    """`(x - mean) * rstd * weight + bias`, or the ReLU of it or of its sum with `other`.

    Args:
        held: x, `(batch, channels, ...)` contiguous; with `normal` `(x - mean) * rstd`, rounded to a dtype.
        weight, bias: `(channels,)`, or None for 1 and 0.
        relu: whether a ReLU follows.
        dtype: of the result; None: that of `held`.
        rounded: where `(x - mean) * rstd` is written to, in its dtype; contiguous.
        other: contiguous, of the shape of x; what is added, in float32, before the ReLU, which must follow.
        bits: with `other`, `(channels, ceil(elements of a channel / 32))` int32, where is written what passes the ReLU.

    Raises:
        ValueError: `held` or `other` is not contiguous.
    """
    channels, size, count = sizes_of(held)
    if other is not None:
        sizes_of(other)
    y, cut = torch.empty_like(held, dtype=dtype), cut_for(channels, count)
    with torch.cuda.device(held.get_device()):
        _norm_kernel[(channels, cut.parts)](
            held, y, rounded, other, bits, weight, bias, mean, rstd, channels, size, count,
            WEIGHT=weight is not None, BIAS=bias is not None, RELU=relu, SUM=other is not None, NORMAL=normal,
            ROUND=rounded is not None, PARTS=cut.parts, BLOCK=cut.block, num_warps=cut.warps, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return y
