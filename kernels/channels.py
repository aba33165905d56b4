"""Channels of a batch of pictures, and how programs share what is computed of each."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import splits_for

__all__ = ["MOST", "STAGES", "THREAD", "Cut", "affine_of", "cut_for", "elements_of", "normal_of", "numbers_like",
           "part_of", "sizes_of"]  # fmt: skip

STAGES = tl.constexpr(2)  # steps under way: one is computed while the next is read
LEAST, MOST = 1024, 4096  # elements of a step
THREAD = 8  # and of each of its threads
MOST_PARTS = 64


@triton.jit
def elements_of(step, end, channel, channels, size, BLOCK: tl.constexpr):
    """Offsets of a step's elements of a channel, numbered image by image, and which there are."""
    e = step + tl.arange(0, BLOCK)
    image = e // size
    return (image * channels + channel).to(tl.int64) * size + (e - image * size), e < end


@triton.jit
def part_of(number, count, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """First element of a part and the one after its last."""
    steps = tl.cdiv(tl.cdiv(count, BLOCK), PARTS)
    begin = number * steps * BLOCK
    return begin, tl.minimum(begin + steps * BLOCK, count)


@triton.jit
def affine_of(weight, bias, channel, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Factor and term of a channel, 1 and 0 where there are none."""
    scale, shift = 1.0, 0.0
    if WEIGHT:
        scale = tl.load(weight + channel).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + channel).to(tl.float32)
    return scale, shift


@triton.jit
def normal_of(held, at, inside, mean, rstd, NORMAL: tl.constexpr):
    """The normalised input, of which `held` is that or the input itself."""
    number = tl.load(held + at, mask=inside, other=0.0).to(tl.float32)
    if not NORMAL:
        number = (number - mean) * rstd
    return number


def sizes_of(x: Tensor) -> tuple[int, int, int]:
    """Channels, elements of a channel in one image, and in all."""
    if not x.is_contiguous():
        raise ValueError(f"norm: tensors must be contiguous, got strides {x.stride()} for {tuple(x.shape)}")
    channels, count = x.shape[1], x.numel() // x.shape[1]
    return channels, count // max(x.shape[0], 1), count


class Cut(NamedTuple):
    """How programs share a channel.

    Attributes:
        parts: programs of a channel.
        block: elements of a step.
        warps: of a program.
    """

    parts: int
    block: int
    warps: int


def cut_for(channels: int, count: int, alone: int = 0) -> Cut:
    """As many programs as fill a device, a whole step each; one for a channel of up to `alone` elements."""
    fills = min(splits_for(channels, triton.cdiv(count, MOST)), MOST_PARTS)
    parts = 1 if count <= alone else fills
    block = min(max(triton.next_power_of_2(triton.cdiv(count, parts)), LEAST), MOST)
    return Cut(parts, block, block // (32 * THREAD))


def numbers_like(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
