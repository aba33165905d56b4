"""Scaled activation pruning by tiles: the k largest magnitudes of 1024 or 2048 elements, as bitmap and packed values.

Huang et al., FedMef, arXiv 2403.14737, with a tile of memory in place of the whole tensor: k of each tile is exact, so
sizes follow from the shape alone, which a CUDA graph needs, and one program needs no other's result. Ties go to the
lowest index, NaN counts as largest. An element costs one bit and `keep` times its stored value; with int32 indices
keep = 0.5 would save nothing.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = ["TILES", "TilePacked", "compress", "cost", "expand"]

# One warp a tile counts without waiting for others: the search for the threshold counts 31 times. A second one halves
# the registers of a tile of 2048.
_WARPS = {1024: 1, 2048: 2}
TILES = tuple(_WARPS)
_STORED = (torch.float32, torch.bfloat16, torch.float16)


class TilePacked(NamedTuple):
    """What is left of a tensor of n elements.

    Attributes:
        bits: `(tiles * tile / 32,)` int32; bit e % 32 of word e // 32 tells whether element e was kept.
        values: `(count,)`, kept elements in order; every tile but the last has k of them.
        tile: elements of a tile.
        k: kept elements of a whole tile.
    """

    bits: Tensor
    values: Tensor
    tile: int
    k: int


@triton.jit
def _compress_kernel(x, bits, values, n, k, k_last, TILE: tl.constexpr):
    tile = tl.program_id(0)
    place = tl.arange(0, TILE)
    at = tile.to(tl.int64) * TILE + place
    inside = at < n
    number = tl.load(x + at, mask=inside, other=0.0)
    # Magnitudes order as their bits do; NaN, above infinity, as one. Elements after the end are below every other.
    key = number.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    key = tl.where(inside, tl.minimum(key, 0x7F800001), -1)
    wanted = tl.where(tile == tl.num_programs(0) - 1, k_last, k)
    # The largest threshold that at least `wanted` keys reach, bit by bit from the highest.
    threshold = wanted * 0
    for bit in range(31):
        candidate = threshold | (1 << (30 - bit))
        enough = tl.sum((key >= candidate).to(tl.int32), axis=0) >= wanted
        threshold = tl.where(enough, candidate, threshold)
    above, equal = key > threshold, key == threshold
    room = wanted - tl.sum(above.to(tl.int32), axis=0)
    kept = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))
    target = tile.to(tl.int64) * k + tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(values + target, number.to(values.dtype.element_ty), mask=kept)
    flags = tl.reshape(kept.to(tl.int32), (TILE // 32, 32))
    # Each bit is set once, so that adding them is or-ing them.
    words = tl.sum(flags << tl.arange(0, 32)[None, :], axis=1)
    tl.store(bits + tile.to(tl.int64) * (TILE // 32) + tl.arange(0, TILE // 32), words)


@triton.jit
def _expand_kernel(bits, values, x, n, k, TILE: tl.constexpr):
    tile = tl.program_id(0)
    place = tl.arange(0, TILE)
    at = tile.to(tl.int64) * TILE + place
    word = tl.load(bits + tile.to(tl.int64) * (TILE // 32) + place // 32)
    kept = (word >> (place % 32)) & 1
    source = tile.to(tl.int64) * k + tl.cumsum(kept, axis=0) - 1
    number = tl.load(values + source, mask=kept != 0, other=0.0)
    tl.store(x + at, number.to(x.dtype.element_ty), mask=at < n)


def compress(x: Tensor, keep: float, *, tile: int = 1024, dtype: torch.dtype | None = None) -> TilePacked:
    """What is left of contiguous `x`, round(keep * tile) elements of a tile.

    Args:
        keep: share in (0, 1].
        tile: 1024 or 2048 elements.
        dtype: of the kept values; None for that of x.

    Raises:
        ValueError: x is not contiguous, or another value is not as above.
    """
    stored = dtype or x.dtype
    if tile not in TILES or not 0 < keep <= 1:
        raise ValueError(f"compress: a tile has 1024 or 2048 elements and keep is in (0, 1], got {tile} and {keep}")
    if not x.is_contiguous() or x.dtype not in _STORED or stored not in _STORED:
        raise ValueError(
            f"compress: x must be contiguous, x and its kept values of 16 or 32 bits, got {x.dtype} of strides "
            f"{x.stride()} to be stored as {stored}"
        )
    n = x.numel()
    tiles, k = triton.cdiv(n, tile), round(keep * tile)
    k_last = round(keep * (n - (tiles - 1) * tile)) if n else 0
    bits = torch.empty(tiles * tile // 32, dtype=torch.int32, device=x.device)
    values = torch.empty((tiles - 1) * k + k_last if n else 0, dtype=stored, device=x.device)
    if n:
        with torch.cuda.device(x.get_device()):
            _compress_kernel[(tiles,)](
                x, bits, values, n, k, k_last, TILE=tile, num_warps=_WARPS[tile], enable_fp_fusion=FUSION
            )
    return TilePacked(bits, values, tile, k)


def expand(packed: TilePacked, like: Tensor) -> Tensor:
    """The pruned tensor, contiguous and of the shape and dtype of `like`, zeros where nothing was kept."""
    x = torch.empty(like.shape, dtype=like.dtype, device=packed.bits.device)
    if x.numel():
        tiles = packed.bits.numel() * 32 // packed.tile
        with torch.cuda.device(x.get_device()):
            _expand_kernel[(tiles,)](
                packed.bits, packed.values, x, x.numel(), packed.k, TILE=packed.tile, enable_fp_fusion=FUSION
            )
    return x


def cost(n: int, keep: float, element_size: int, stored_size: int) -> tuple[float, float]:
    """Bytes that stay of n elements, and bytes that compressing them moves."""
    kept = n / 8 + keep * n * stored_size
    return kept, n * element_size + kept
