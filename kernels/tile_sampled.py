"""Gradients of weights at the kept positions only, for rows in tiles that share them, on tensor cores.

A sampled product (SDDMM) of the output's gradient with gathered input pixels: each program computes the (rows, taps)
gradients of some taps of a tile by summing over pixels. The sum is cut into as many parts as fill a device; parts are
added in order, by a second pass.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_product import Tiles, bearable, precision
from .tuning import FUSION, autotuned, size_class, splits_for
from .window import Window, gather, read_pixels, read_taps, split_pixels

__all__ = ["tile_sampled"]

BLOCK_P = 32  # pixels of one step: the width of a reduction, never tuned
CONFIGS = [
    triton.Config({"BLOCK_K": block}, num_warps=warps, num_stages=stages)
    for block, warps in [(32, 4), (64, 4), (64, 8), (128, 8)]
    for stages in (3, 2, 4)
]


def fits(known: Mapping[str, Any]) -> bool:
    """The rules that spare most configs their measurement; few taps are not padded to over twice their number."""
    block = known["BLOCK_K"]
    return bearable(BLOCK_P, block, known) and bool(block <= max(32, 2 * known["longest"]))


@autotuned(CONFIGS, ["pixel_class", "length_class", "ROWS", "KH", "KW", "SH", "SW"], fits)
@triton.jit(do_not_specialize=["pixel_class", "length_class"])
def _tile_sampled_kernel(
    gradient,
    source,
    slope,
    start,
    entry,
    tiles,
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
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0) % tiles
    first = tl.load(start + tile)
    length = tl.load(start + tile + 1) - first
    tap = tl.program_id(0) // tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    kept = tap < length
    name = tl.load(entry + first + tap, mask=kept, other=0)
    offset, down, right = read_taps(
        name, kept, source_channel, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED
    )
    row = tile * ROWS + tl.arange(0, ROWS)
    inside = row < slope_rows
    part = tl.cdiv(tl.cdiv(pixels, BLOCK_P), SPLITS) * BLOCK_P
    begin = tl.program_id(1) * part
    # A tile with fewer taps than the longest leaves some programs nothing to do.
    end = tl.where(tl.program_id(0) // tiles * BLOCK_K < length, tl.minimum(begin + part, pixels), begin)
    sums = tl.zeros((ROWS, BLOCK_K), tl.float32)
    for p in range(begin, end, BLOCK_P):
        pixel = p + tl.arange(0, BLOCK_P)
        base, rows, columns = read_pixels(
            pixel, end, slope_high, slope_wide, high, wide, pad_high, pad_wide,
            source_image, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED, BOUNDS, FLAT,
        )  # fmt: skip
        image, above, across = split_pixels(pixel, slope_high, slope_wide, FLAT)
        place = image * slope_image + above * slope_row + across * slope_pixel
        g = tl.load(
            slope + row[:, None] * slope_channel + place[None, :],
            mask=inside[:, None] & (pixel < end)[None, :],
            other=0.0,
        )
        x = gather(source, offset, down, right, base, rows, columns, BOUNDS)
        sums = tl.dot(g, tl.trans(x), sums, input_precision=PRECISION)
    target = gradient + tl.program_id(1).to(tl.int64) * split_stride + first.to(tl.int64) * ROWS
    tl.store(
        target + tl.arange(0, ROWS)[:, None] * length + tap[None, :],
        sums.to(gradient.dtype.element_ty),
        mask=inside[:, None] & kept[None, :],
    )


def tile_sampled(slope: Tensor, source: Tensor, count: int, tiles: Tiles, window: Window) -> Tensor:
    """dL/dvalues `(count,)` of source's dtype, of each tile a row-major matrix of its rows and taps.

    Args:
        slope: `(images, rows of the weight, height, width)` of any strides, gradient of the product.
        source: `(images, channels, height, width)` of any strides, its input.
        count: values there are.
    """
    images, channels, high, wide = slope.shape
    pixels = images * high * wide
    if count == 0 or pixels == 0:
        return source.new_zeros(count)
    splits = splits_for(tiles.tiles * triton.cdiv(tiles.longest, 32), triton.cdiv(pixels, 4 * BLOCK_P))
    split = splits > 1
    partial = source.new_empty((splits, count), dtype=torch.float32 if split else source.dtype)
    with torch.cuda.device(source.get_device()):
        _tile_sampled_kernel[lambda meta: (tiles.tiles * triton.cdiv(tiles.longest, meta["BLOCK_K"]), splits)](
            partial,
            source,
            slope,
            tiles.start,
            tiles.entry,
            tiles.tiles,
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
            PRECISION=precision(source.dtype),
            ROWS=tiles.rows,
            BLOCK_P=BLOCK_P,
            enable_fp_fusion=FUSION,
        )
    return partial.sum(0).to(source.dtype) if split else partial[0]
