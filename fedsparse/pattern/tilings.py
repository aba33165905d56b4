"""Tiles of several weights at once, for tensors on one device: in a few calls, however many the weights are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedsparse.pattern.pattern import Pattern
from fedsparse.pattern.positions import shifts, starts_of
from fedsparse.pattern.tiling import Tiling, position_of, tile_of

__all__ = ["Tilings", "flat_of_each"]


@dataclass(frozen=True)
class Tilings:
    """Tiles of weights, numbered through: those of a weight come behind those of the weights before it.

    Attributes:
        each: of every weight, without broken tiles.
    """

    each: Sequence[Tiling]

    def of(self, flats: Sequence[Tensor]) -> Tensor:
        """Tile of each flat position of each weight, int64, one weight behind the other."""
        flat, counts = torch.cat([*flats]), [len(one) for one in flats]
        return tile_of(flat, *self._for_each(counts, flat)) + shifts(self.counts, counts, flat)

    def counted(self, tiles: Tensor) -> list[int]:
        """How many of some ascending tiles belong to each weight; the host waits."""
        bounds: list[int] = torch.searchsorted(tiles, tiles.new_tensor(starts_of(self.counts))).tolist()
        return [after - before for before, after in pairwise(bounds)]

    def positions(self, tiles: Sequence[Tensor]) -> list[Tensor]:
        """Flat positions of distinct tiles of each weight, numbered by themselves, int64 and ascending."""
        counts = [len(some) * tiling.size for some, tiling in zip(tiles, self.each, strict=True)]
        sizes = self.per_tile([len(some) for some in tiles], tiles[0])
        whole = torch.repeat_interleave(torch.cat([*tiles]), sizes, output_size=sum(counts))
        first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes, output_size=sum(counts))
        within = torch.arange(sum(counts), device=whole.device) - first
        behind = shifts([tiling.positions_in_all for tiling in self.each], counts, whole)
        found = (position_of(whole, within, *self._for_each(counts, whole)) + behind).sort().values - behind
        return list(found.split(counts))

    def per_tile(self, counts: Sequence[int], like: Tensor) -> Tensor:
        """The size of a tile for `counts[i]` tiles of each weight, int64."""
        sizes, repeats = like.new_tensor([[tiling.size for tiling in self.each], [*counts]], dtype=torch.int64)
        return torch.repeat_interleave(sizes, repeats, output_size=sum(counts))

    @property
    def counts(self) -> list[int]:
        """Tiles of each weight."""
        return [tiling.count for tiling in self.each]

    def _for_each(self, counts: Sequence[int], like: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """axes, tile and grid for `counts[i]` numbers of each weight."""
        numbers = [[*tiling.axes, *tiling.tile, *tiling.grid] for tiling in self.each]
        table = like.new_tensor([*zip(*numbers, strict=True)], dtype=torch.int32)
        repeats = like.new_tensor([*counts], dtype=torch.int64)
        rows = torch.repeat_interleave(table, repeats, dim=1, output_size=sum(counts)).unbind()
        return rows[:3], rows[3:6], rows[6:]


def flat_of_each(patterns: Sequence[Pattern]) -> list[Tensor]:
    """`Pattern.flat` of each, in calls whose number does not follow theirs where columns have 16 bits."""
    if any(pattern.column.dtype != torch.uint16 for pattern in patterns):
        return [pattern.flat for pattern in patterns]
    # torch concatenates 16 bits as int16, and knows no arithmetic of uint16.
    column = torch.cat([pattern.column.view(torch.int16) for pattern in patterns]).to(torch.int64) & 0xFFFF
    begin, end = (torch.cat([p.row_start[part] for p in patterns]) for part in (slice(None, -1), slice(1, None)))
    rows, kept = [p.shape[0] for p in patterns], [p.nnz for p in patterns]
    widths, repeats = column.new_tensor([[p.size // p.shape[0] for p in patterns], rows])
    first = torch.arange(sum(rows), device=column.device) - shifts(rows, rows, column)
    first *= torch.repeat_interleave(widths, repeats, output_size=sum(rows))
    spread = torch.repeat_interleave(first, (end - begin).to(torch.int64), output_size=sum(kept))
    return list((spread + column).split(kept))
