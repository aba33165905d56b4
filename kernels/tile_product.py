"""Products of weights whose rows come in tiles that share their kept columns, on tensor cores: forward and dX.

A tile of `rows` output channels meets the same taps, so its product is a dense one over gathered pixels: an implicit
GEMM whose inner dimension are the kept taps alone. Lanes of a warp hold neighbouring pixels, which lie side by side in
NCHW, so a tap's gather is as coalesced as a dense load; channels-last would put neighbouring channels side by side, of
which a mask keeps only some. Weights are read where they are: the values of a tile in flat row order are a row-major
(rows, taps) matrix already. dX is the same product with the transposed tiles.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION, autotuned, size_class, splits_for
from .window import Window, gather, read_pixels, read_taps, split_pixels

__all__ = ["Tiles", "bearable", "precision", "tile_product"]

BLOCK_K = 16  # taps of one step: the width of a reduction, never tuned
SHARED_LIMIT = 80 * 1024  # bytes; two programs fit a multiprocessor of sm_80 (164 KB) and of sm_90 (228 KB)


class Tiles(NamedTuple):
    """Kept positions of a weight matrix, in tiles of consecutive rows that share their taps.

    Attributes:
        start: `(tiles + 1,)` int32, first tap of each tile.
        entry: `(taps,)` int32, source channel * kernel area + place in the kernel, ascending within a tile.
        rows: rows of a tile, a power of two of at least 16; the last tile may have fewer.
        longest: most taps of a tile.
    """

    start: Tensor
    entry: Tensor
    rows: int
    longest: int

    @property
    def tiles(self) -> int:
        return self.start.numel() - 1


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 as three TF32 products, which keeps float32's accuracy on tensor cores."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


CONFIGS = [
    triton.Config({"BLOCK_P": block}, num_warps=warps, num_stages=stages)
    for block, warps in [(128, 4), (64, 4), (64, 2), (128, 8), (256, 8)]
    for stages in (3, 2, 4)
]


def bearable(step: int, block: int, known: Mapping[str, Any]) -> bool:
    """Whether steps of `step` numbers along the sum, for tiles of ROWS x `block`, fit threads and memory.

    A thread gathers at most 16 numbers a step: each needs an address of two registers and a predicate, and with 32 the
    compiled kernels took 150 to 255 registers. It holds 4 to 32 sums: with fewer, addresses outweigh products. The
    pipeline's buffers fit twice into shared memory.
    """
    rows, lanes = known["ROWS"], 32 * known["num_warps"]
    gathered, sums = step * block // lanes, rows * block // lanes
    buffers = known["num_stages"] * step * (rows + block) * known["source"].element_size()
    return bool(gathered <= 16 and 4 <= sums <= 32 and buffers <= SHARED_LIMIT)


def fits(known: Mapping[str, Any]) -> bool:
    """The rules that spare most configs their measurement; a tile of pixels is not over twice the pixels there are."""
    block = known["BLOCK_P"]
    return bearable(BLOCK_K, block, known) and bool(block <= max(64, 2 * known["pixels"]))


@autotuned(CONFIGS, ["pixel_class", "length_class", "ROWS", "KH", "KW", "SH", "SW", "TRANSPOSED"], fits)
@triton.jit(do_not_specialize=["pixel_class", "length_class"])
def _tile_product_kernel(
    values,
    source,
    result,
    bias,
    start,
    entry,
    tiles,
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
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    # Programs that follow each other read the same pixels for other rows: the gathers of all but one hit the L2 cache.
    tile = tl.program_id(0) % tiles
    pixel = tl.program_id(0) // tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    base, rows, columns = read_pixels(
        pixel, pixels, target_high, target_wide, high, wide, pad_high, pad_wide,
        source_image, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED, BOUNDS, FLAT,
    )  # fmt: skip
    first = tl.load(start + tile)
    length = tl.load(start + tile + 1) - first
    row = tile * ROWS + tl.arange(0, ROWS)
    weight = values + first.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None] * length
    # Parts are whole steps, so that no tap is added elsewhere when their number changes little.
    part = tl.cdiv(tl.cdiv(length, BLOCK_K), SPLITS) * BLOCK_K
    begin = tl.program_id(1) * part
    end = tl.minimum(begin + part, length)
    sums = tl.zeros((ROWS, BLOCK_P), tl.float32)
    for k in range(begin, end, BLOCK_K):
        tap = k + tl.arange(0, BLOCK_K)
        kept = tap < end
        name = tl.load(entry + first + tap, mask=kept, other=0)
        offset, down, right = read_taps(
            name, kept, source_channel, source_row, source_pixel, KH, KW, SH, SW, DH, DW, TRANSPOSED
        )
        w = tl.load(weight + tap[None, :], mask=kept[None, :] & (row < target_rows)[:, None], other=0.0)
        x = gather(source, offset, down, right, base, rows, columns, BOUNDS)
        sums = tl.dot(w, x, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row < target_rows, other=0.0).to(tl.float32)[:, None]
    image, above, across = split_pixels(pixel, target_high, target_wide, FLAT)
    place = image * target_image + above * target_row + across * target_pixel
    target = result + tl.program_id(1).to(tl.int64) * split_stride + row[:, None] * target_channel + place[None, :]
    tl.store(target, sums.to(result.dtype.element_ty), mask=(row < target_rows)[:, None] & (pixel < pixels)[None, :])


def tile_product(
    values: Tensor,
    source: Tensor,
    target: Tensor,
    bias: Tensor | None,
    tiles: Tiles,
    window: Window,
    *,
    transposed: bool,
) -> None:
    """Overwrites `target` with the product, in a fixed order of additions.

    Args:
        values: `(taps * rows,)`, of each tile a row-major matrix of its rows and taps.
        source: `(images, channels, height, width)` of any strides: the input, or with `transposed` the gradient.
        target: `(images, rows of the weight, height, width)` of any strides and of values' and source's dtype.
        bias: `(rows of the weight,)`, or None.
        transposed: a tap goes from the output's pixel to the input's instead of from the input's to the output's.
    """
    images, channels, high, wide = target.shape
    pixels = images * high * wide
    if pixels == 0:
        return
    mean = tiles.entry.numel() // max(tiles.tiles, 1)
    # Counted with the largest tile of pixels that may be chosen: the number of parts must not depend on the choice.
    splits = splits_for(tiles.tiles * triton.cdiv(pixels, 128), mean // (4 * BLOCK_K))
    split = splits > 1
    partial = target.new_empty((splits, *target.shape), dtype=torch.float32) if split else target[None]
    with torch.cuda.device(source.get_device()):
        _tile_product_kernel[lambda meta: (tiles.tiles * triton.cdiv(pixels, meta["BLOCK_P"]), splits)](
            values,
            source,
            partial,
            bias,
            tiles.start,
            tiles.entry,
            tiles.tiles,
            channels,
            pixels,
            high,
            wide,
            *source.shape[2:],
            *window.padding,
            *source.stride(),
            *partial.stride()[1:],
            partial.stride(0),
            size_class(pixels),
            size_class(mean),
            **window.constants(target, transposed=transposed),
            HAS_BIAS=bias is not None and not split,
            SPLITS=splits,
            PRECISION=precision(source.dtype),
            ROWS=tiles.rows,
            BLOCK_K=BLOCK_K,
            enable_fp_fusion=FUSION,
        )
    if split:
        total = partial.sum(0)
        target.copy_(total if bias is None else total + bias[:, None, None])
