"""Batch normalisation and ReLU in one: training forward and backward, of which only the input is saved.

The normalised input, the output's sign and the output itself follow from the input and two numbers a channel, so the
backward pass recomputes them.

Every channel is cut into parts, a program each. Means and squared deviations of parts are merged pairwise-exactly
(Chan, Golub and LeVeque 1983), in a fixed order by every program that needs them: no atomics, no third launch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION, splits_for

__all__ = ["Saved", "cost", "norm_relu", "norm_relu_backward"]

BLOCK = 1024  # elements of one step
MOST_PARTS = 64


class Saved(NamedTuple):
    """What the backward pass needs beside weight and bias: the input `(batch, channels, ...)`, and its mean and the
    reciprocal of its deviation, `(channels,)` float32.
    """

    x: Tensor
    mean: Tensor
    rstd: Tensor


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
    """Mean and biased variance of a channel, from those of its parts."""
    part = tl.arange(0, WIDTH)
    inside = part < PARTS
    begin, end = _part(part, count, PARTS, BLOCK)
    share = tl.maximum(end - begin, 0).to(tl.float32)
    mean = tl.load(partial + channel * PARTS + part, mask=inside, other=0.0)
    squares = tl.load(partial + (channels + channel) * PARTS + part, mask=inside, other=0.0)
    share = tl.where(inside, share, 0.0)
    middle = tl.sum(share * mean, axis=0) / count
    return middle, tl.sum(squares + share * (mean - middle) * (mean - middle), axis=0) / count


@triton.jit
def _moments_kernel(x, partial, channels, size, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    channel, part = tl.program_id(0), tl.program_id(1)
    begin, end = _part(part, count, PARTS, BLOCK)
    at, inside = _elements(begin, end, channel, channels, size, BLOCK)
    # Sums of squares around the mean of the first step keep their digits, wherever the channel lies.
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    around = tl.sum(first, axis=0) / tl.maximum(tl.minimum(end - begin, BLOCK), 1)
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(begin, end, BLOCK):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        off = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - around, 0.0)
        sums += off
        squares += off * off
    total, share = tl.sum(sums, axis=0), tl.maximum(end - begin, 1)
    tl.store(partial + channel * PARTS + part, around + total / share)
    tl.store(partial + (channels + channel) * PARTS + part, tl.sum(squares, axis=0) - total * total / share)


@triton.jit
def _apply_kernel(
    x,
    y,
    weight,
    bias,
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
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, variance = _merged(partial, channel, channels, count, PARTS, WIDTH, BLOCK)
    rstd = 1.0 / tl.sqrt(variance + eps)
    if part == 0:
        tl.store(means + channel, mean)
        tl.store(rstds + channel, rstd)
        old_mean, old_var = tl.load(running_mean + channel), tl.load(running_var + channel)
        tl.store(running_mean + channel, old_mean + momentum * (mean - old_mean))
        tl.store(running_var + channel, old_var + momentum * (unbiased * variance - old_var))
    scale, shift = tl.load(weight + channel), tl.load(bias + channel)
    begin, end = _part(part, count, PARTS, BLOCK)
    for step in range(begin, end, BLOCK):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        number = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        result = (number - mean) * rstd * scale + shift
        tl.store(y + at, tl.where(result <= 0, 0.0, result).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gated(grad, x, at, inside, mean, rstd, scale, shift):
    """The gradient behind the ReLU, and the normalised input. The gate is computed as the forward pass computes it."""
    normal = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
    slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    return tl.where(normal * scale + shift <= 0, 0.0, slope), normal


@triton.jit
def _slopes_kernel(
    grad, x, weight, bias, means, rstds, partial, channels, size, count, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = tl.load(weight + channel), tl.load(bias + channel)
    begin, end = _part(part, count, PARTS, BLOCK)
    sums, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(begin, end, BLOCK):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, x, at, inside, mean, rstd, scale, shift)
        sums += slope
        products += slope * normal
    tl.store(partial + channel * PARTS + part, tl.sum(sums, axis=0))
    tl.store(partial + (channels + channel) * PARTS + part, tl.sum(products, axis=0))


@triton.jit
def _grad_kernel(
    grad,
    x,
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
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel, part = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(means + channel), tl.load(rstds + channel)
    scale, shift = tl.load(weight + channel), tl.load(bias + channel)
    parts = tl.arange(0, WIDTH)
    sums = partial + channel * PARTS + parts
    total = tl.sum(tl.load(sums, mask=parts < PARTS, other=0.0), axis=0)
    product = tl.sum(tl.load(sums + channels * PARTS, mask=parts < PARTS, other=0.0), axis=0)
    if part == 0:
        tl.store(grad_bias + channel, total)
        tl.store(grad_weight + channel, product)
    begin, end = _part(part, count, PARTS, BLOCK)
    for step in range(begin, end, BLOCK):
        at, inside = _elements(step, end, channel, channels, size, BLOCK)
        slope, normal = _gated(grad, x, at, inside, mean, rstd, scale, shift)
        number = scale * rstd * (slope - (total + normal * product) / count)
        tl.store(result + at, number.to(result.dtype.element_ty), mask=inside)


def norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float, eps: float
) -> tuple[Tensor, Saved]:
    """`relu(batch_norm(x))` with the batch's statistics; the running ones are updated in place.

    Args:
        x: `(batch, channels, ...)` contiguous, at least two elements a channel.
        weight, bias, running_mean, running_var: `(channels,)` float32.
        momentum: weight of the batch in the running statistics.

    Raises:
        ValueError: x is not contiguous, or has fewer than two elements a channel.
    """
    channels, size, count = _sizes(x)
    if count < 2:
        raise ValueError(f"norm_relu: a variance needs two elements a channel, got an input of shape {tuple(x.shape)}")
    parts = _parts(channels, count)
    y, partial = torch.empty_like(x), _numbers(x, 2, channels, parts)
    saved = Saved(x, _numbers(x, channels), _numbers(x, channels))
    grid, width = (channels, parts), triton.next_power_of_2(parts)
    with torch.cuda.device(x.get_device()):
        _moments_kernel[grid](x, partial, channels, size, count, PARTS=parts, BLOCK=BLOCK, enable_fp_fusion=FUSION)
        _apply_kernel[grid](
            x, y, weight, bias, partial, saved.mean, saved.rstd, running_mean, running_var,
            channels, size, count, eps, momentum, count / (count - 1), PARTS=parts, WIDTH=width, BLOCK=BLOCK,
            enable_fp_fusion=FUSION,
        )  # fmt: skip
    return y, saved


def norm_relu_backward(grad: Tensor, saved: Saved, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias from that of the output, contiguous.

    Raises:
        ValueError: the gradient is not contiguous, or not of the input's shape.
    """
    channels, size, count = _sizes(grad)
    if grad.shape != saved.x.shape:
        raise ValueError(f"norm_relu_backward: gradient {tuple(grad.shape)} of an input {tuple(saved.x.shape)}")
    parts = _parts(channels, count)
    result, partial = torch.empty_like(saved.x), _numbers(grad, 2, channels, parts)
    grad_weight, grad_bias = torch.empty_like(saved.mean), torch.empty_like(saved.mean)
    grid, width = (channels, parts), triton.next_power_of_2(parts)
    common = (grad, saved.x, weight, bias, saved.mean, saved.rstd, partial)
    with torch.cuda.device(grad.get_device()):
        _slopes_kernel[grid](*common, channels, size, count, PARTS=parts, BLOCK=BLOCK, enable_fp_fusion=FUSION)
        _grad_kernel[grid](
            *common,
            result,
            grad_weight,
            grad_bias,
            channels,
            size,
            count,
            PARTS=parts,
            WIDTH=width,
            BLOCK=BLOCK,
            enable_fp_fusion=FUSION,
        )
    return result, grad_weight, grad_bias


def cost(n: int, element_size: int) -> tuple[int, int]:
    """Bytes saved of n elements, and bytes that forward (3 passes) and backward (5 passes) move."""
    return n * element_size, 8 * n * element_size


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Channels, elements of a channel in one image, and in all."""
    if not x.is_contiguous():
        raise ValueError(f"norm_relu: tensors must be contiguous, got strides {x.stride()} for {tuple(x.shape)}")
    channels, count = x.shape[1], x.numel() // x.shape[1]
    return channels, count // max(x.shape[0], 1), count


def _parts(channels: int, count: int) -> int:
    return min(splits_for(channels, triton.cdiv(count, 4 * BLOCK)), MOST_PARTS)


def _numbers(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
