"""A pattern as the Triton kernels read it: tiles of rows that share a list of taps, for the product and its transpose.

Where a tile's rows keep the same columns, as under the granularities vector and block, the list is exact and the values
stay where they are. Elsewhere rows can still be *united*: their list names every tap that any of them keeps, and values
are packed with zeros at the others. That is how dX of a vector pattern uses tensor cores: its 16 input channels keep
different taps, and at density 0.1 their union holds 0.81 of all, eight times the products; tensor cores offer over
thirty times those of scalar code, which gathers four bytes for each (the products per byte decide).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse.backends.base import Case
from fedsparse.pattern import Pattern

__all__ = ["TapTiles", "build", "rows_of"]

_ROWS = (64, 32, 16)  # rows of a tile; tensor cores multiply 16 at a time, Hopper's warp groups 64


class TapTiles(NamedTuple):
    """Tiles of consecutive rows of a product, and where their weights stand.

    Attributes:
        start: `(tiles + 1,)` int32, first tap of each tile.
        entry: `(taps,)` int32, source channel * kernel area + place in the kernel, ascending within a tile.
        rows: rows of a tile; the last one may have fewer.
        longest: most taps of a tile.
        runs: whether most taps read the channel after the one before.
        order: `(taps * rows,)` int32, which value stands at each place of the tiles' matrices; nnz stands for zero.
            None where values stand in order.
        slot: `(nnz,)` int32, its inverse.
    """

    start: Tensor
    entry: Tensor
    rows: int
    longest: int
    runs: bool
    order: Tensor | None = None
    slot: Tensor | None = None

    def pack(self, values: Tensor) -> Tensor:
        """Values `(nnz,)` as matrices of the tiles, `(taps * rows,)`."""
        if self.order is None:
            return values
        if self.order.numel() > values.numel():
            values = torch.cat([values, values.new_zeros(1)])
        return values.index_select(0, self.order)

    def unpack(self, packed: Tensor) -> Tensor:
        """The values `(nnz,)` of packed matrices."""
        return packed if self.slot is None else packed.index_select(0, self.slot)

    @property
    def packed_size(self) -> int | None:
        """Length of packed values; None where they are not packed."""
        return None if self.order is None else self.order.numel()


def rows_of(pattern: Pattern) -> tuple[int, ...]:
    """Rows that a tile may have, by granularity; the first whose rows share their taps is taken, else the last.

    One row means scalar kernels. An op hands over a pattern without its granularity's name: then its lists tell.
    """
    name, _, size = str(pattern.granularity).partition(":")
    if name in ("vector", "block"):
        whole = int(size) & -int(size)  # tiles are powers of two
        return (min(max(whole, _ROWS[-1]), _ROWS[0]),)
    if name == "channel":
        return (_ROWS[-1],)
    return (*_ROWS, 1)


def build(pattern: Pattern, case: Case, candidates: tuple[int, ...], *, transposed: bool) -> TapTiles:
    """Lists of the product's rows, or with `transposed` of its input channels; on the pattern's device."""
    owner, entry = _positions(pattern, case, transposed)
    owners = case.input[1] if transposed else case.shape[0]
    counts = torch.bincount(owner, minlength=owners)
    for rows in candidates[:-1]:
        if _same_counts(counts, rows):
            found = _tiles(owner, entry, rows, owners)
            if found.entry.numel() * rows == pattern.nnz:
                return found
    return _tiles(owner, entry, candidates[-1], owners)


def _positions(pattern: Pattern, case: Case, transposed: bool) -> tuple[Tensor, Tensor]:
    """Of each value, `(nnz,)` int64: the row of the product it adds to, and source channel * area + place."""
    area = pattern.size // (pattern.shape[0] * pattern.shape[1])
    groups = case.geometry.groups if case.geometry else 1
    row, column = pattern.rows, pattern.column.to(torch.int64)
    channel = row // (pattern.shape[0] // groups) * pattern.shape[1] + column // area
    if transposed:
        return channel, row * area + column % area
    return row, channel * area + column % area


def _same_counts(counts: Tensor, rows: int) -> bool:
    """Whether consecutive rows keep equally many taps, without which they cannot keep the same."""
    if counts.numel() % rows:
        return False
    tiles = counts.view(-1, rows)
    return bool((tiles == tiles[:, :1]).all())


def _tiles(owner: Tensor, entry: Tensor, rows: int, owners: int) -> TapTiles:
    nnz, tiles = owner.numel(), -(-owners // rows)
    span = int(entry.max()) + 1 if nnz else 1
    names, place = torch.unique(owner // rows * span + entry, return_inverse=True)
    tile = names // span
    length = torch.bincount(tile, minlength=tiles)
    start = torch.zeros(tiles + 1, dtype=torch.int64, device=owner.device)
    start[1:] = length.cumsum(0)
    own = tile[place]
    slot = start[own] * rows + owner % rows * length[own] + place - start[own]
    order: Tensor | None = torch.full((names.numel() * rows,), nnz, dtype=torch.int32, device=owner.device)
    here = torch.arange(nnz, device=owner.device)
    if torch.equal(slot, here):
        order, slot32 = None, None
    else:
        assert order is not None
        order[slot] = here.to(torch.int32)
        slot32 = slot.to(torch.int32)
    taps = (names % span).to(torch.int32)
    follows = int((taps[1:] == taps[:-1] + 1).sum()) if nnz else 0
    longest = int(length.max()) if tiles else 0
    return TapTiles(start.to(torch.int32), taps, rows, longest, 2 * follows > taps.numel(), order, slot32)
