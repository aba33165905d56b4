"""Gradients of weights kept one by one, at the kept positions only.

A program sums over pixels for some taps of one row: the row's gradient is loaded once for all of them. Lanes keep a sum
for each tap and meet at the end. The sum is cut into as many parts as fill a device; parts are added in order.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_product import Tiles
from .tuning import FUSION, autotuned, size_class, splits_for
from .window import Window, gather, read_pixels, read_taps, split_pixels

__all__ = ["element_sampled"]

BLOCK_P = 128  # pixels of one step: the width of a reduction, never tuned; nor are the 4 warps that share it
CONFIGS = [triton.Config({"BLOCK_K": block}, num_warps=4, num_stages=2) for block in (8, 4, 16, 32)]


def fits(known: Mapping[str, Any]) -> bool:
    """Few taps are not padded to over twice their number."""
    return bool(known["BLOCK_K"] <= max(4, 2 * known["longest"]))


@autotuned(CONFIGS, ["pixel_class", "length_class", "KH", "KW", "SH", "SW"], fits)
@triton.jit(do_not_specialize=["pixel_class", "length_class"])
def _element_sampled_kernel(
    gradient,
    source,
    slope,
    start,
    entry,
    slope_rows,
    longest,
    pixels,
    slope_high,
    slope_wide,
    high,
    wide,
    pad_high,
    pad_wide,
    source_image,
    source_channel,
    source_row,
    source_pixel,
    slope_image,
    slope_channel,
    slope_row,
    slope_pixel,
    split_stride,
    pixel_class,
    length_class,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BOUNDS: tl.constexpr,
    FLAT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0) % slope_rows
    first, last = tl.load(start + row), tl.load(start + row + 1)
    tap = first + tl.program_id(0) // slope_rows * BLOCK_K + tl.arange(0, BLOCK_K)
    kept = tap < last
    name = tl.load(entry + tap, mask=kept, other=0)
    offset, down, right = read_taps(
        name, kept, source_channel, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED
    )
    part = tl.cdiv(tl.cdiv(pixels, BLOCK_P), SPLITS) * BLOCK_P
    begin = tl.program_id(1) * part
    # A row with fewer taps than the longest leaves some programs nothing to do.
    busy = first + tl.program_id(0) // slope_rows * BLOCK_K < last
    end = tl.where(busy, tl.minimum(begin + part, pixels), begin)
    sums = tl.zeros((BLOCK_K, BLOCK_P), tl.float32)
    for p in range(begin, end, BLOCK_P):
        pixel = p + tl.arange(0, BLOCK_P)
        base, rows, columns = read_pixels(
            pixel, end, slope_high, slope_wide, high, wide, pad_high, pad_wide,
            source_image, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED, BOUNDS, FLAT,
        )  # fmt: skip
        image, above, across = split_pixels(pixel, slope_high, slope_wide, FLAT)
        place = row * slope_channel + image * slope_image + above * slope_row + across * slope_pixel
        g = tl.load(slope + place, mask=pixel < end, other=0.0).to(tl.float32)
        x = gather(source, offset, down, right, base, rows, columns, BOUNDS).to(tl.float32)
        sums += g[None, :] * x
    target = gradient + tl.program_id(1).to(tl.int64) * split_stride + tap
    tl.store(target, tl.sum(sums, axis=1).to(gradient.dtype.element_ty), mask=kept)


def element_sampled(slope: Tensor, source: Tensor, count: int, tiles: Tiles, window: Window) -> Tensor:
    """`tile_sampled` for tiles of one row."""
    images, channels, high, wide = slope.shape
    pixels = images * high * wide
    if count == 0 or pixels == 0:
        return source.new_zeros(count)
    splits = splits_for(triton.cdiv(count, 8), triton.cdiv(pixels, 8 * BLOCK_P))
    split = splits > 1
    partial = source.new_empty((splits, count), dtype=torch.float32 if split else source.dtype)
    with torch.cuda.device(source.get_device()):
        _element_sampled_kernel[lambda meta: (channels * triton.cdiv(tiles.longest, meta["BLOCK_K"]), splits)](
            partial,
            source,
            slope,
            tiles.start,
            tiles.entry,
            channels,
            tiles.longest,
            pixels,
            high,
            wide,
            *source.shape[2:],
            *window.padding,
            *source.stride(),
            *slope.stride(),
            count,
            size_class(pixels),
            size_class(tiles.longest),
            **window.constants(slope, transposed=False),
            SPLITS=splits,
            BLOCK_P=BLOCK_P,
            enable_fp_fusion=FUSION,
        )
    return partial.sum(0).to(source.dtype) if split else partial[0]
