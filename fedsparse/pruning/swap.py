"""Drop and regrow: exchange kept positions for pruned ones, their number unchanged."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Element, Pattern, exchange_all
from fedsparse.pattern.positions import ascending, ascending_of_each, taken_of_each, together
from fedsparse.pattern.rebuilding import NOT_RISING
from fedsparse.pattern.together import growth_faults
from fedsparse.pruning.select import smallest_and_largest
from fedsparse.pruning.units import exchanged_units, magnitudes, magnitudes_at, whole
from fedsparse.pruning.units_together import Swap, swappable, swapped

__all__ = ["swap", "swap_all"]


def swap(pattern: Pattern, values: Tensor, candidates: Tensor, *, scores: Tensor, count: int) -> Pattern:
    """Pattern with the `count` smallest |values| dropped and the `count` candidates of largest |score| grown.

    A dropped position cannot come back in the same swap, because only positions pruned at entry may be
    candidates. With fewer candidates, fewer are swapped; the last weight is never dropped. Ties go to the
    lowest flat position. All happens where the pattern lies, and so does the new one.

    Larger units are swapped whole, `count` being rounded to the closest number of them: by the root mean square of
    their values, and of their scores, a missing one being 0. A unit gives way to one of its own pool (see
    `fedsparse.pattern.granularity`): the largest scores grow, and room is made where they are.

    Args:
        values: `(pattern.nnz,)` kept weights.
        candidates: `(c,)` int64 flat positions, distinct and pruned in `pattern`, in any order.
        scores: `(c,)` score of each candidate, e.g. its gradient.

    Raises:
        PatternError: a candidate is kept, repeated or out of range, sizes disagree, a value or score is NaN.
    """
    return swap_all({"": pattern}, {"": values}, {"": (candidates, scores)}, {"": count})[""]


def swap_all(
    patterns: Mapping[str, Pattern],
    values: Mapping[str, Tensor],
    candidates: Mapping[str, tuple[Tensor, Tensor]],
    counts: Mapping[str, int],
) -> dict[str, Pattern]:
    """`swap` of several weights, by name; on a CUDA device they share launches, and the host waits for all at once.

    Args:
        patterns: of the weights to swap.
        values: kept weights of each, as in `swap`.
        candidates: positions and scores of each.
        counts: of each.

    Raises:
        PatternError: as `swap`, before anything has been swapped.
    """
    asked = [_asked(p, values[name], *candidates[name], counts[name]) for name, p in patterns.items()]
    orders = dict(zip(patterns, map(_limited, _in_order(asked)), strict=True))
    single = {n: o for n, o in orders.items() if isinstance(o.pattern.granularity, Element) and o.number}
    changes = dict(zip(single, _positions([*single.values()]), strict=True))
    others = {name: order for name, order in orders.items() if not isinstance(order.pattern.granularity, Element)}
    found = zip(others, _whole_units([*others.values()]), strict=True)
    changes |= {name: change for name, change in found if change is not None and len(change[1])}
    new = exchange_all([(patterns[name], *change) for name, change in changes.items()])
    return {**patterns, **dict(zip(changes, new, strict=True))}


def _asked(pattern: Pattern, values: Tensor, candidates: Tensor, scores: Tensor, count: int) -> Swap:
    where = pattern.column.device
    values, candidates, scores = values.detach().to(where), candidates.to(where), scores.detach().to(where)
    _check_sizes(pattern, values, candidates, scores=scores, count=count)
    return Swap(pattern, values, candidates, scores, count)


def _limited(order: Swap) -> Swap:
    if not isinstance(order.pattern.granularity, Element):
        return order
    return order._replace(number=max(0, min(order.number, order.candidates.numel(), order.pattern.nnz - 1)))


def _positions(orders: Sequence[Swap]) -> list[tuple[Tensor, Tensor]]:
    """What is dropped and grown in swaps of single positions."""
    numbers = [order.number for order in orders]
    dropped, grown = smallest_and_largest([o.values for o in orders], [o.scores for o in orders], numbers)
    return [*zip(dropped, taken_of_each([order.candidates for order in orders], grown), strict=True)]


def _whole_units(orders: Sequence[Swap]) -> list[tuple[Tensor, Tensor] | None]:
    """The same where whole units are swapped; None for nothing."""
    joint = [order for order in orders if swappable(order)]
    if not joint or not together([order.pattern.column for order in joint]):
        return [_units(order) for order in orders]
    found = iter(swapped(joint))
    return [next(found) if swappable(order) else _units(order) for order in orders]


def _units(order: Swap) -> tuple[Tensor, Tensor] | None:
    """Of one weight by itself."""
    tiling = order.pattern.granularity.tiling(order.pattern.shape)
    units, grow = magnitudes_at(tiling, order.candidates, order.scores)
    drop = -magnitudes(order.pattern, order.values)
    return exchanged_units(order.pattern, drop, units, grow, whole(order.number, tiling.size))


# ---- candidates in order
def _in_order(orders: Sequence[Swap]) -> list[Swap]:
    """With candidates that ascend, refused where they cannot be grown: on a device all are looked at together."""
    faults = growth_faults([(order.pattern, order.candidates) for order in orders])
    mixed = [order for order, fault in zip(orders, faults, strict=True) if fault == NOT_RISING]
    settled = iter(_sorted_together(mixed))
    return [
        order if fault == 0 else next(settled) if fault == NOT_RISING else _sorted(order)
        for order, fault in zip(orders, faults, strict=True)
    ]


def _sorted_together(orders: Sequence[Swap]) -> list[Swap]:
    """Of candidates that are in range and pruned."""
    candidates = [order.candidates for order in orders]
    if not orders or not together(candidates):
        return [_sorted(order) for order in orders]
    candidates, scores, repeated = ascending_of_each(
        candidates, [order.scores for order in orders], [order.pattern.size for order in orders]
    )
    if bool(repeated):
        return [_sorted(order) for order in orders]
    return [
        order._replace(candidates=ordered, scores=its)
        for order, ordered, its in zip(orders, candidates, scores, strict=True)
    ]


def _sorted(order: Swap) -> Swap:
    """One weight by itself: who is refused hears why."""
    candidates, scores = _ascending(order.pattern, order.candidates, order.scores)
    _check_candidates(order.pattern, candidates)
    return order._replace(candidates=candidates, scores=scores)


def _ascending(pattern: Pattern, candidates: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates in ascending order, refused where out of range, and their scores."""
    if candidates.numel() == 0:
        return candidates, scores
    lowest, highest = (int(bound) for bound in candidates.aminmax())
    if lowest < 0 or highest >= pattern.size:
        raise PatternError(
            f"candidates must lie in [0, {pattern.size}) for a weight of shape {pattern.shape}, "
            f"got positions from {lowest} to {highest}"
        )
    if bool((candidates[1:] >= candidates[:-1]).all()):
        return candidates.contiguous(), scores
    candidates, order = ascending(candidates, pattern.size)
    return candidates, scores[order]


def _check_sizes(pattern: Pattern, values: Tensor, candidates: Tensor, *, scores: Tensor, count: int) -> None:
    if values.shape != (pattern.nnz,):
        raise PatternError(f"expected values of shape ({pattern.nnz},) for this pattern, got {tuple(values.shape)}")
    if candidates.dtype != torch.int64 or candidates.ndim != 1:
        raise PatternError(
            f"candidates must be one-axis int64 flat positions, "
            f"got {candidates.dtype} of shape {tuple(candidates.shape)}"
        )
    if scores.shape != candidates.shape:
        raise PatternError(
            f"expected one score for each of {candidates.numel()} candidates, got shape {tuple(scores.shape)}"
        )
    if count < 0:
        raise PatternError(f"the number of weights to swap cannot be negative, got {count}")


def _check_candidates(pattern: Pattern, candidates: Tensor) -> None:
    """Refuse ascending candidates that are repeated or kept."""
    repeated = candidates[1:] == candidates[:-1]
    if bool(repeated.any()):
        raise PatternError(f"candidate {int(candidates[1:][repeated][0])} is given more than once")
    kept = pattern.first_kept(candidates)
    if kept is not None:
        raise PatternError(f"candidate {kept} is kept already; only pruned positions can be grown")
