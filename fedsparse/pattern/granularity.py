"""The unit in which positions of a weight are kept or pruned.

A granularity cuts a weight `(out, in, *kernel)` into units, each kept or pruned as a whole. Where an axis is no
multiple of a unit its last units are smaller, so that every layer of every model can be pruned in every granularity and
densities keep their meaning; a kernel may refuse such a layer. Output channels of a convolution in groups are counted
through.

Masks that are moved keep their number of weights because units change places only with others of their pool: units of
the same size, or, for `nm`, of the same M input channels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern.tiling import Tiling

__all__ = ["NM", "Block", "Channel", "Element", "Granularity", "Vector", "parse"]

_EXPECTED = "'element', 'vector:G', 'block:B', 'nm:N:M' or 'channel', as in 'vector:8', 'block:16', 'nm:2:4'"


@dataclass(frozen=True)
class Granularity:
    """What all granularities answer, of a weight's dense shape `(out, in, *kernel)`."""

    def tiling(self, shape: Sequence[int]) -> Tiling:
        """The units."""
        raise NotImplementedError

    @property
    def share(self) -> Fraction | None:
        """Kept share of a weight, where the granularity leaves no choice."""
        return None

    def pools(self, shape: Sequence[int]) -> int:
        """Number of pools; 1 where all units may change places."""
        return 1 if self.tiling(shape).even else 4

    def pool_of(self, shape: Sequence[int], units: Tensor) -> Tensor:
        """Pool of each unit, int64 in [0, pools)."""
        return self.tiling(shape).edge(units)

    def fixed_count(self, shape: Sequence[int]) -> int:
        """Kept positions of a weight; of granularities with a `share`."""
        raise NotImplementedError

    def fixed_choice(self, scores: Tensor) -> Tensor:
        """Flat positions, ascending, of the highest of `scores`, of dense shape; of granularities with a `share`."""
        raise NotImplementedError

    def check(self, shape: Sequence[int], flat: Tensor) -> None:
        """Refuses ascending kept positions `(nnz,)` int64 that are not made of whole units.

        Raises:
            PatternError: it names the first broken unit and what is kept of it.
        """
        tiling = self.tiling(shape)
        if tiling.size == 1:
            return
        units, kept = tiling.of(flat).unique(return_counts=True)
        sizes = tiling.sizes(units)
        broken = (kept != sizes).nonzero()
        if len(broken):
            first = int(broken[0])
            raise PatternError(
                f"granularity {str(self)!r} keeps or prunes whole units of a weight of shape {tuple(shape)}, but at "
                f"{tiling.place(int(units[first]))}: {int(kept[first])} of {int(sizes[first])} positions are kept; "
                "keep all of them or none, or use granularity='element'"
            )


@dataclass(frozen=True)
class Element(Granularity):
    """Every single weight is kept or pruned on its own."""

    def __str__(self) -> str:
        return "element"

    def tiling(self, shape: Sequence[int]) -> Tiling:
        return Tiling.of_shape(shape, (1, 1, 1))


@dataclass(frozen=True)
class Vector(Granularity):
    """`length` consecutive output channels share their inputs: each (input channel, kernel position) of all or none."""

    length: int

    def __post_init__(self) -> None:
        _at_least_two(self, self.length)

    def __str__(self) -> str:
        return f"vector:{self.length}"

    def tiling(self, shape: Sequence[int]) -> Tiling:
        return Tiling.of_shape(shape, (self.length, 1, 1))


@dataclass(frozen=True)
class Block(Granularity):
    """Blocks of `side` output by `side` input channels, per kernel position."""

    side: int

    def __post_init__(self) -> None:
        _at_least_two(self, self.side)

    def __str__(self) -> str:
        return f"block:{self.side}"

    def tiling(self, shape: Sequence[int]) -> Tiling:
        return Tiling.of_shape(shape, (self.side, self.side, 1))


@dataclass(frozen=True)
class Channel(Granularity):
    """Output channels, each with all its inputs."""

    def __str__(self) -> str:
        return "channel"

    def tiling(self, shape: Sequence[int]) -> Tiling:
        return Tiling.of_shape(shape, (1, None, None))


@dataclass(frozen=True)
class NM(Granularity):
    """`n` of every `m` consecutive input channels, per output channel and kernel position.

    Units are single positions, pools the runs of m. A last run of r < m input channels keeps n r / m of them, rounded
    up, so that no layer is emptied.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise PatternError(f"granularity {str(self)!r} must keep 1 to {self.m - 1} of {self.m}, as in 'nm:2:4'")

    def __str__(self) -> str:
        return f"nm:{self.n}:{self.m}"

    @property
    def share(self) -> Fraction:
        return Fraction(self.n, self.m)

    def tiling(self, shape: Sequence[int]) -> Tiling:
        return Tiling.of_shape(shape, (1, 1, 1))

    def runs(self, shape: Sequence[int]) -> Tiling:
        """The runs of m input channels."""
        return Tiling.of_shape(shape, (1, self.m, 1))

    def pools(self, shape: Sequence[int]) -> int:
        return self.runs(shape).count

    def pool_of(self, shape: Sequence[int], units: Tensor) -> Tensor:
        return self.runs(shape).of(units)

    def fixed_count(self, shape: Sequence[int]) -> int:
        return int(self._kept_of(self.runs(shape).sizes()).sum())

    def fixed_choice(self, scores: Tensor) -> Tensor:
        runs = self.runs(scores.shape)
        kept = self._kept_of(runs.sizes()).to(scores.device)
        return (runs.ranks(scores) < runs.spread(kept)).nonzero().squeeze(1)

    def check(self, shape: Sequence[int], flat: Tensor) -> None:
        # Memory follows the kept positions: a shape that was received may be of any size.
        runs = self.runs(shape)
        if runs.count > len(flat):
            raise PatternError(
                f"granularity {str(self)!r} keeps {self.n} of every {self.m} input channels, so {runs.count} positions "
                f"or more of a weight of shape {tuple(shape)}; {len(flat)} are kept"
            )
        kept = torch.bincount(runs.of(flat), minlength=runs.count)
        wanted = self._kept_of(runs.sizes().to(kept.device))
        broken = (kept != wanted).nonzero()
        if len(broken):
            first = int(broken[0])
            raise PatternError(
                f"granularity {str(self)!r} keeps {self.n} of every {self.m} input channels of a weight of shape "
                f"{tuple(shape)}, but at {runs.place(first)}: {int(kept[first])} are kept, expected "
                f"{int(wanted[first])}; keep as many, or use granularity='element'"
            )

    def _kept_of(self, sizes: Tensor) -> Tensor:
        """How many of each run are kept: its share, rounded up."""
        return -(-sizes * self.n // self.m)


def _at_least_two(granularity: Granularity, length: int) -> None:
    if length < 2:
        raise PatternError(f"granularity {str(granularity)!r} has units of {length}; use 'element' or at least 2")


_KINDS: dict[str, type[Granularity]] = {
    "element": Element,
    "vector": Vector,
    "block": Block,
    "nm": NM,
    "channel": Channel,
}


def parse(text: str) -> Granularity:
    """Granularity from its spelling: `element`, `vector:G`, `block:B`, `nm:N:M` or `channel`.

    Raises:
        PatternError: the spelling is unknown, or its numbers make no unit.
    """
    kind, *numbers = text.split(":")
    known = _KINDS.get(kind)
    readable = all(re.fullmatch(r"[0-9]{1,9}", number) for number in numbers)
    if known is None or len(numbers) != len(fields(known)) or not readable:
        raise PatternError(f"unknown granularity {text!r}; expected {_EXPECTED}")
    return known(*map(int, numbers))
