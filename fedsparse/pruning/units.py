"""Scores and choices of whole units of a weight; see `fedsparse.pattern.granularity`.

Scores of positions become scores of units by their mean, weights and gradients by their root mean square: both per
element, so that units of different size compare. Of single positions, units are the positions themselves.

Units are counted, ranked and chosen where the pattern lies.
"""

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, Tiling
from fedsparse.pruning.select import top

__all__ = [
    "exchange",
    "exchanged_units",
    "fitting",
    "highest",
    "kept_units",
    "likewise",
    "magnitudes",
    "magnitudes_at",
    "means",
    "places_of",
    "refilled",
    "replaceable",
    "whole",
]


def whole(weights: int, size: int) -> int:
    """Units of `size` positions that come closest to a number of weights; the half is rounded up."""
    return (2 * weights + size) // (2 * size)


# ---- scores
def kept_units(pattern: Pattern) -> Tensor:
    """Units that a pattern keeps, `(u,)` int64 ascending."""
    tiling, flat = _tiling(pattern), pattern.flat
    return flat if tiling.size == 1 else tiling.of(flat).unique()


def magnitudes(pattern: Pattern, values: Tensor) -> Tensor:
    """Root mean square of each kept unit's `values` `(nnz,)`, `(u,)` in the order of `kept_units`."""
    values = values.detach().to(pattern.column.device)
    if _tiling(pattern).size == 1:
        return values.abs()
    return magnitudes_at(_tiling(pattern), pattern.flat, values)[1]


def magnitudes_at(tiling: Tiling, flat: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Units that flat positions `(n,)` lie in, `(u,)` ascending, and the root mean squares of their entries `(u,)`.

    Positions of these units without an entry count as 0.
    """
    if tiling.size == 1:
        units, found = tiling.means_at(flat, entries)
        return units, found.abs()
    units, squares = tiling.means_at(flat, entries.double().square())
    return units, squares.sqrt()


def means(tiling: Tiling, scores: Tensor) -> Tensor:
    """Mean over each unit of a score per position, `(units,)` float64.

    Raises:
        PatternError: a score is NaN, or a unit has infinities of both signs.
    """
    found = tiling.sums(scores.detach().double()) / tiling.sizes().to(scores.device)
    _refuse_nan(found)
    return found


def _refuse_nan(scores: Tensor) -> None:
    if bool(scores.isnan().any()):
        raise PatternError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN and have no order")


# ---- choices
def highest(scores: Tensor, count: int, pool: Tensor, most: Tensor) -> Tensor:
    """Ascending places of the `count` highest scores, of each pool at most `most[pool]`; ties to the first.

    With less room in the pools, fewer.

    Args:
        scores: `(n,)`.
        pool: `(n,)` int64, of each score.
        most: `(pools,)` int64.

    Raises:
        PatternError: a score is NaN.
    """
    if len(most) == 1:
        return top(scores, min(count, int(most[0]), len(scores)))
    _refuse_nan(scores)
    open_ones = (most[pool] > 0).nonzero().squeeze(1)  # usually few where pools are many
    order = open_ones[scores[open_ones].sort(descending=True, stable=True).indices]
    by_pool = pool[order].sort(stable=True)
    sizes = torch.bincount(pool[open_ones], minlength=len(most))
    rank = torch.empty_like(order)
    places = torch.arange(len(order), device=order.device)
    rank[by_pool.indices] = places - (sizes.cumsum(0) - sizes)[by_pool.values]
    return order[rank < most[pool[order]]][:count].sort().values


def fitting(scores: Tensor, sizes: Tensor, room: int) -> Tensor:
    """Ascending places of the highest scores `(n,)` whose `sizes` `(n,)` together fit into `room`; ties to the first.

    What does not fit is passed over, so that smaller ones further down may fill the room.
    """
    order, taken = scores.sort(descending=True, stable=True).indices, []
    while len(order):
        used = sizes[order].cumsum(0)
        fit = int((used <= room).sum())
        if fit:
            taken.append(order[:fit])
            room -= int(used[fit - 1])
        order = order[fit:]
        order = order[sizes[order] <= room]  # each turn ends one size: there are few
    return torch.cat(taken).sort().values if taken else order


def likewise(pattern: Pattern, units: Tensor, scores: Tensor) -> Pattern:
    """Pattern of the highest scores, as many of each pool as `pattern` keeps; in main memory.

    Args:
        units: `(n,)` int64, distinct, from which to choose; as many or more of each pool as `pattern` keeps.
        scores: `(n,)`, of each.
    """
    kept, granularity, units, scores = kept_units(pattern.to("cpu")), pattern.granularity, units.cpu(), scores.cpu()
    if granularity.pools(pattern.shape) == 1:
        chosen = units[top(scores, len(kept))]
    else:
        most = _in_pools(pattern, kept)
        chosen = units[highest(scores, len(kept), granularity.pool_of(pattern.shape, units), most)]
    return Pattern.from_flat(pattern.shape, _tiling(pattern).positions(chosen), granularity)


def exchange(pattern: Pattern, drop: Tensor, units: Tensor, grow: Tensor, count: int) -> Pattern:
    """Pattern in which `count` units have made room for others, each for one of its own pool.

    Grown are the units of the highest scores, of each pool at most as many as it keeps; dropped are as many of each
    pool, again of the highest scores. One unit stays in any case. Ties go to the first.

    Args:
        drop: `(u,)` scores of the kept units, in their order.
        units: `(c,)` int64, ascending and pruned, that may grow.
        grow: `(c,)`, their scores.
    """
    change = exchanged_units(pattern, drop, units, grow, count)
    return pattern if change is None else pattern.exchanged(*change)


def exchanged_units(
    pattern: Pattern, drop: Tensor, units: Tensor, grow: Tensor, count: int
) -> tuple[Tensor, Tensor] | None:
    """Numbers of the values that `exchange` drops and flat positions that it grows, ascending, or None for nothing."""
    count = min(count, len(units), len(drop) - 1)
    if count <= 0:
        return None
    granularity, shape = pattern.granularity, pattern.shape
    if granularity.pools(shape) == 1:
        grown, dropped = units[top(grow, count)], top(drop, count)
    else:
        kept = kept_units(pattern)
        grown = units[highest(grow, count, granularity.pool_of(shape, units), _in_pools(pattern, kept))]
        dropped = highest(drop, len(drop), granularity.pool_of(shape, kept), _in_pools(pattern, grown))
    return places_of(pattern, dropped), _tiling(pattern).positions(grown)


def replaceable(pattern: Pattern, drop: Tensor, count: int) -> Tensor:
    """Which kept units go, `count` at most, when others come later: of each pool no more than it has pruned ones.

    Args:
        drop: `(u,)` scores of the kept units, in their order; the highest go. One stays in any case.
    """
    granularity, kept = pattern.granularity, kept_units(pattern)
    every = _in_pools(pattern, torch.arange(_tiling(pattern).count, device=kept.device))
    room = every - _in_pools(pattern, kept)
    return highest(drop, min(count, len(kept) - 1), granularity.pool_of(pattern.shape, kept), room)


def refilled(thinned: Pattern, full: Pattern, positions: Tensor, scores: Tensor) -> Pattern:
    """`thinned` with as many units of each pool as `full` has, by those of largest score that `full` does not keep.

    Args:
        positions: `(n,)` int64 ascending, of all candidates.
        scores: `(n,)`, of each position.
    """
    granularity, shape = full.granularity, full.shape
    kept = kept_units(full)
    missing = _in_pools(full, kept) - _in_pools(full, kept_units(thinned))
    units, grow = magnitudes_at(_tiling(full), positions.to(kept.device), scores.to(kept.device))
    fresh = ~torch.isin(units, kept)
    units, grow = units[fresh], grow[fresh]
    best = highest(grow, int(missing.sum()), granularity.pool_of(shape, units), missing)
    nothing = units.new_empty(0)
    return thinned.exchanged(nothing, _tiling(full).positions(units[best]))


def places_of(pattern: Pattern, kept: Tensor) -> Tensor:
    """Which of the values, int64 ascending, belong to the kept units number `kept` `(n,)`, counted as `kept_units`."""
    tiling = _tiling(pattern)
    if tiling.size == 1:
        return kept
    units, unit_of_value = tiling.of(pattern.flat).unique(return_inverse=True)
    chosen = torch.zeros(len(units), dtype=torch.bool, device=units.device)
    chosen[kept] = True
    return chosen[unit_of_value].nonzero().squeeze(1)


def _tiling(pattern: Pattern) -> Tiling:
    return pattern.granularity.tiling(pattern.shape)


def _in_pools(pattern: Pattern, units: Tensor) -> Tensor:
    """How many of some units each pool has, `(pools,)`."""
    granularity, pools = pattern.granularity, pattern.granularity.pools(pattern.shape)
    if pools == 1:
        return torch.tensor([len(units)])
    return torch.bincount(granularity.pool_of(pattern.shape, units), minlength=pools)
