"""Whole units of several weights swapped at once, on one device: in a few calls, however many the weights are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse.pattern import Pattern
from fedsparse.pattern.positions import shifts, taken_of_each
from fedsparse.pattern.tiling import sums
from fedsparse.pattern.tilings import Tilings, flat_of_each
from fedsparse.pruning.select import top_of_each
from fedsparse.pruning.units import whole

__all__ = ["Swap", "swappable", "swapped"]


class Swap(NamedTuple):
    """What is asked of one weight, as `pruning.swap` takes it; once it may be carried out, candidates ascend.

    Attributes:
        number: of positions that give way to as many candidates.
    """

    pattern: Pattern
    values: Tensor
    candidates: Tensor
    scores: Tensor
    number: int


def swappable(order: Swap) -> bool:
    """Whether all units of a weight have one size, above 1, and any may change places."""
    granularity, shape = order.pattern.granularity, order.pattern.shape
    tiling = granularity.tiling(shape)
    return tiling.even and tiling.size > 1 and granularity.pools(shape) == 1


def swapped(orders: Sequence[Swap]) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the values that each weight drops and flat positions that it grows, ascending; as `pruning.swap` says.

    All lie `together` and are `swappable`. Of units the root mean squares of values and of scores count, a missing one
    being 0. One unit of a weight stays in any case.
    """
    tilings = Tilings([order.pattern.granularity.tiling(order.pattern.shape) for order in orders])
    whole_ones = [order.pattern.nnz // tiling.size for order, tiling in zip(orders, tilings.each, strict=True)]
    flats = flat_of_each([order.pattern for order in orders])
    kept = _Units.of(tilings, flats, [order.values for order in orders], whole_ones)
    new = _Units.of(tilings, [order.candidates for order in orders], [order.scores for order in orders])
    numbers = [
        max(0, min(whole(order.number, tiling.size), fresh, stay - 1))
        for order, tiling, fresh, stay in zip(orders, tilings.each, new.counts, kept.counts, strict=True)
    ]
    chosen = top_of_each([*(-kept.scores).split(kept.counts), *new.scores.split(new.counts)], [*numbers, *numbers])
    own = (new.units - shifts(tilings.counts, new.counts, new.units)).split(new.counts)
    grown = tilings.positions(taken_of_each(own, chosen[len(orders) :]))
    return [*zip(_values_of(kept, chosen[: len(orders)], orders, tilings), grown, strict=True)]


class _Units(NamedTuple):
    """Units of all weights that some positions lie in.

    Attributes:
        units: `(u,)` int64, ascending.
        place: `(n,)` int64, which of them each position lies in.
        scores: `(u,)` float64, root mean square of each; a position without an entry counts as 0.
        counts: how many belong to each weight.
    """

    units: Tensor
    place: Tensor
    scores: Tensor
    counts: list[int]

    @classmethod
    def of(
        cls, tilings: Tilings, flats: Sequence[Tensor], entries: Sequence[Tensor], counts: list[int] | None = None
    ) -> "_Units":
        """Of flat positions and an entry of each; `counts` are read from the device where nobody knows them."""
        units, place = tilings.of(flats).unique(return_inverse=True)
        counts = tilings.counted(units) if counts is None else counts
        squares = sums(place, torch.cat([*entries]).double().square(), len(units))
        return cls(units, place, (squares / tilings.per_tile(counts, units)).sqrt(), counts)


def _values_of(kept: _Units, chosen: Sequence[Tensor], orders: Sequence[Swap], tilings: Tilings) -> list[Tensor]:
    """Which values of each weight belong to the chosen ones of its kept units."""
    numbers, nnz = [len(some) for some in chosen], [order.pattern.nnz for order in orders]
    counts = [number * tiling.size for number, tiling in zip(numbers, tilings.each, strict=True)]
    leaving = torch.cat([*chosen]) + shifts(kept.counts, numbers, kept.units)
    flags = torch.zeros_like(kept.units, dtype=torch.bool).index_fill_(0, leaving, True)
    values = flags[kept.place].nonzero().squeeze(1)
    return list((values - shifts(nnz, counts, values)).split(counts))
