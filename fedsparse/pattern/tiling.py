"""A weight's positions cut into tiles: boxes of output channels, input channels and kernel positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Tiling", "position_of", "sums", "tile_of"]


@dataclass(frozen=True)
class Tiling:
    """Tiles of one weight, numbered in row order; every position lies in exactly one.

    Where an axis is no multiple of the tile, its last tiles are smaller: the edge.

    Attributes:
        axes: output channels, input channels and kernel positions of the weight.
        tile: how many of each an unbroken tile spans, at most as many as there are.
    """

    axes: tuple[int, int, int]
    tile: tuple[int, int, int]

    @classmethod
    def of_shape(cls, shape: Sequence[int], tile: tuple[int | None, int | None, int | None]) -> "Tiling":
        """Tiles of a weight of dense shape `(out, in, *kernel)`; None spans an axis."""
        axes = (shape[0], shape[1], math.prod(shape[2:]))
        out, inputs, taps = (n if t is None else min(t, n) for t, n in zip(tile, axes, strict=True))
        return cls(axes, (out, inputs, taps))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along each axis."""
        out, inputs, taps = (-(-n // t) for n, t in zip(self.axes, self.tile, strict=True))
        return out, inputs, taps

    @property
    def count(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    @property
    def size(self) -> int:
        """Positions of an unbroken tile. At 1, tiles are positions and have their numbers."""
        return math.prod(self.tile)

    @property
    def positions_in_all(self) -> int:
        """Positions of the weight."""
        return math.prod(self.axes)

    @property
    def even(self) -> bool:
        """Whether all tiles are unbroken."""
        return all(n % t == 0 for n, t in zip(self.axes, self.tile, strict=True))

    # ---- from positions to tiles
    def of(self, flat: Tensor) -> Tensor:
        """Tile of each flat position, int64 and shaped like them."""
        if self.size == 1:
            return flat
        return tile_of(flat, self.axes, self.tile, self.grid)

    def sums(self, dense: Tensor) -> Tensor:
        """Sum over each tile of a number per position, `(tiles,)`."""
        if self.size == 1:
            return dense.reshape(-1)
        (a, b, c), (high, wide, deep) = self.tile, self.grid
        return self._whole(dense, 0).view(high, a, wide, b, deep, c).sum((1, 3, 5)).reshape(-1)

    def ranks(self, scores: Tensor) -> Tensor:
        """How many positions of its tile come before each one by falling score, ties by position; `(positions,)`."""
        (a, b, c), (high, wide, deep) = self.tile, self.grid
        padded = self._whole(scores, -math.inf)  # behind all that are there
        of_tiles = padded.view(high, a, wide, b, deep, c).permute(0, 2, 4, 1, 3, 5).reshape(self.count, self.size)
        order = of_tiles.sort(dim=1, descending=True, stable=True).indices
        ranks = torch.empty_like(order).scatter_(
            1, order, torch.arange(self.size, device=order.device).expand_as(order)
        )
        back = ranks.view(high, wide, deep, a, b, c).permute(0, 3, 1, 4, 2, 5).reshape(padded.shape)
        rows, inputs, taps = self.axes
        return back[:rows, :inputs, :taps].reshape(-1)

    def means_at(self, flat: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles that flat positions `(n,)` lie in, `(t,)` ascending, and their means `(t,)`.

        Positions of these tiles that are not among the given ones count as 0.
        """
        if self.size == 1 and bool((flat[1:] > flat[:-1]).all()):
            return flat, entries
        tiles, place = self.of(flat).unique(return_inverse=True)
        return tiles, sums(place, entries.double(), len(tiles)) / self.sizes(tiles)

    def _whole(self, dense: Tensor, value: float) -> Tensor:
        """A number per position, of shape `axes`, with `value` where tiles of the edge are broken off."""
        missing = [g * t - n for g, t, n in zip(self.grid, self.tile, self.axes, strict=True)]
        return F.pad(dense.reshape(self.axes), (0, missing[2], 0, missing[1], 0, missing[0]), value=value)

    # ---- from tiles to positions
    def spread(self, numbers: Tensor) -> Tensor:
        """The number of its tile at each position, `(positions,)`, from `(tiles,)`."""
        if self.size == 1:
            return numbers
        for axis, (tile, extent) in enumerate(zip(self.tile, self.axes, strict=True)):
            before = (*self.axes[:axis], *self.grid[axis:])
            numbers = numbers.view(before).repeat_interleave(tile, axis).narrow(axis, 0, extent).contiguous()
        return numbers.reshape(-1)

    def positions(self, tiles: Tensor) -> Tensor:
        """Flat positions of distinct tiles, int64 and ascending."""
        if self.size == 1:
            return tiles.sort().values
        chosen = torch.zeros(self.count, dtype=torch.bool, device=tiles.device)
        chosen[tiles] = True
        return self.spread(chosen).nonzero().squeeze(1)

    # ---- the edge
    def edge(self, tiles: Tensor) -> Tensor:
        """What kind of tile each is, int64: 0 unbroken, 1 broken in outputs, 2 in inputs, 3 in both.

        Tiles of one kind have one size. No granularity breaks a kernel.
        """
        (high, wide, deep), (a, b, _), (rows, inputs, _) = self.grid, self.tile, self.axes
        kind = torch.zeros_like(tiles)
        if rows % a:
            kind += (tiles // (wide * deep) == high - 1).long()
        if inputs % b:
            kind += 2 * (tiles // deep % wide == wide - 1).long()
        return kind

    def sizes(self, tiles: Tensor | None = None) -> Tensor:
        """Positions of each of some tiles, or of all, int64."""
        if self.even:
            return torch.full((self.count,), self.size) if tiles is None else torch.full_like(tiles, self.size)
        if tiles is None:
            tiles = torch.arange(self.count)
        (a, b, c), (rows, inputs, _) = self.tile, self.axes
        last_a, last_b = rows % a or a, inputs % b or b
        by_kind = torch.tensor([a * b, last_a * b, a * last_b, last_a * last_b], device=tiles.device) * c
        return by_kind[self.edge(tiles)]

    def place(self, tile: int) -> str:
        """Where a tile lies, for a message."""
        _, wide, deep = self.grid
        at = (tile // (wide * deep), tile // deep % wide, tile % deep)
        names = ("output channel", "input channel", "kernel position")
        spans = (
            _span(name, i * t, min((i + 1) * t, n))
            for name, i, t, n in zip(names, at, self.tile, self.axes, strict=True)
            if n > 1
        )
        return ", ".join(spans)


Sizes = Sequence[Tensor] | Sequence[int]  # of each axis: one for all numbers, or each number's own


def tile_of(flat: Tensor, axes: Sizes, tile: Sizes, grid: Sizes) -> Tensor:
    """Tile of each flat position; see `Tiling`."""
    (_, inputs, taps), (a, b, c), (_, wide, deep) = axes, tile, grid
    row, rest = flat // (inputs * taps), flat % (inputs * taps)
    return (row // a * wide + rest // taps // b) * deep + rest % taps // c


def position_of(tiles: Tensor, within: Tensor, axes: Sizes, tile: Sizes, grid: Sizes) -> Tensor:
    """Flat position number `within`, by row, of each of some unbroken tiles."""
    (_, inputs, taps), (a, b, c), (_, wide, deep) = axes, tile, grid
    row = tiles // (wide * deep) * a + within // (b * c)
    column = tiles // deep % wide * b + within // c % b
    return (row * inputs + column) * taps + tiles % deep * c + within % c


def sums(place: Tensor, entries: Tensor, count: int) -> Tensor:
    """Sum of the entries of each place, `(count,)`, added in an order that does not change from call to call."""
    found = entries.new_zeros(count)
    if found.device.type == "cpu":
        return found.index_add_(0, place, entries)
    return found.index_put_((place,), entries, accumulate=True)  # on a GPU this one sorts, the other does not


def _span(name: str, first: int, end: int) -> str:
    return f"{name} {first}" if end - first == 1 else f"{name}s {first} to {end - 1}"
