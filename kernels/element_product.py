"""Products of weights kept one by one, with scalar multiply-adds: forward and dX of any mask, without a compiler.

A program computes some pixels of one row. Of each step of a few taps, every lane gathers its own pixels, neighbours of
the next lane's in NCHW, so loads are coalesced, and all loads of a step are in flight together. Sums stay in the lane
that loads: no number crosses lanes. An input number is loaded once for each kept weight that meets it, from caches;
the limit is four bytes a multiply-add of level-one traffic, a quarter of the multiply-adds a multiprocessor could do.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile_product import Tiles
from .tuning import FUSION, autotuned, keeps_sums_in_lanes, size_class
from .window import Window, gather, read_pixels, read_taps, split_pixels

__all__ = ["element_product"]

BLOCK_K = 8  # taps of one step: the width of a reduction, never tuned
CONFIGS = [
    triton.Config({"BLOCK_P": block}, num_warps=warps, num_stages=2)
    for block, warps in [(128, 4), (64, 2), (32, 1), (128, 2), (256, 4), (256, 8), (512, 8)]
][: None if keeps_sums_in_lanes() else 1]


def fits(known: Mapping[str, Any]) -> bool:
    """Every lane has a pixel, or lanes would share a pixel's sum and its order; at most 4, or the gathered numbers
    spill. A tile of pixels is not over twice the pixels there are.
    """
    lanes = 32 * known["num_warps"]
    return bool(lanes <= known["BLOCK_P"] <= min(4 * lanes, max(32, 2 * known["pixels"])))


@autotuned(CONFIGS, ["pixel_class", "length_class", "KH", "KW", "SH", "SW", "TRANSPOSED"], fits)
@triton.jit(do_not_specialize=["pixel_class", "length_class"])
def _element_product_kernel(
    values,
    source,
    result,
    bias,
    start,
    entry,
    target_rows,
    pixels,
    target_high,
    target_wide,
    high,
    wide,
    pad_high,
    pad_wide,
    source_image,
    source_channel,
    source_row,
    source_pixel,
    target_image,
    target_channel,
    target_row,
    target_pixel,
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
    HAS_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    # Programs that follow each other gather from the same pixels.
    row = tl.program_id(0) % target_rows
    pixel = tl.program_id(0) // target_rows * BLOCK_P + tl.arange(0, BLOCK_P)
    base, rows, columns = read_pixels(
        pixel, pixels, target_high, target_wide, high, wide, pad_high, pad_wide,
        source_image, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED, BOUNDS, FLAT,
    )  # fmt: skip
    sums = tl.zeros((BLOCK_P,), tl.float32)
    end = tl.load(start + row + 1)
    for k in range(tl.load(start + row), end, BLOCK_K):
        tap = k + tl.arange(0, BLOCK_K)
        kept = tap < end
        name = tl.load(entry + tap, mask=kept, other=0)
        offset, down, right = read_taps(
            name, kept, source_channel, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED
        )
        w = tl.load(values + tap, mask=kept, other=0.0).to(tl.float32)
        x = gather(source, offset, down, right, base, rows, columns, BOUNDS).to(tl.float32)
        sums += tl.sum(w[:, None] * x, axis=0)
    if HAS_BIAS:
        sums += tl.load(bias + row).to(tl.float32)
    image, above, across = split_pixels(pixel, target_high, target_wide, FLAT)
    place = row * target_channel + image * target_image + above * target_row + across * target_pixel
    tl.store(result + place, sums.to(result.dtype.element_ty), mask=pixel < pixels)


def element_product(
    values: Tensor,
    source: Tensor,
    target: Tensor,
    bias: Tensor | None,
    tiles: Tiles,
    window: Window,
    *,
    transposed: bool,
) -> None:
    """`tile_product` for tiles of one row."""
    images, channels, high, wide = target.shape
    pixels = images * high * wide
    if pixels == 0:
        return
    with torch.cuda.device(source.get_device()):
        _element_product_kernel[lambda meta: (channels * triton.cdiv(pixels, meta["BLOCK_P"]),)](
            values,
            source,
            target,
            bias,
            tiles.start,
            tiles.entry,
            channels,
            pixels,
            high,
            wide,
            *source.shape[2:],
            *window.padding,
            *source.stride(),
            *target.stride(),
            size_class(pixels),
            size_class(tiles.entry.numel() // channels),
            **window.constants(target, transposed=transposed),
            HAS_BIAS=bias is not None,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=FUSION,
        )
