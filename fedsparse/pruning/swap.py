"""Drop and regrow: exchange kept positions for pruned ones, their number unchanged."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Element, Pattern
from fedsparse.pattern.positions import ascending
from fedsparse.pruning.select import smallest, top
from fedsparse.pruning.units import exchange, magnitudes, magnitudes_at, whole

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
    """`swap` of several weights, by name; on a CUDA device the values to drop of all of them are found in one launch.

    Args:
        patterns: of the weights to swap.
        values: kept weights of each, as in `swap`.
        candidates: positions and scores of each.
        counts: of each.

    Raises:
        PatternError: as `swap`, before anything has been swapped.
    """
    orders = {name: _order(p, values[name], *candidates[name], counts[name]) for name, p in patterns.items()}
    single = {name: o for name, o in orders.items() if isinstance(patterns[name].granularity, Element) and o.number}
    drops = smallest([order.values for order in single.values()], [order.number for order in single.values()])
    dropped = dict(zip(single, drops, strict=True))
    swapped = {name: _units(patterns[name], order) for name, order in orders.items() if name not in single}
    swapped |= {name: patterns[name].exchanged(dropped[name], _grown(order)) for name, order in single.items()}
    return {name: swapped[name] for name in patterns}


class _Order(NamedTuple):
    """A swap that may be carried out: candidates ascend, and `number` positions give way to as many of them."""

    values: Tensor
    candidates: Tensor
    scores: Tensor
    number: int


def _order(pattern: Pattern, values: Tensor, candidates: Tensor, scores: Tensor, count: int) -> _Order:
    where = pattern.column.device
    values, candidates, scores = values.detach().to(where), candidates.to(where), scores.detach().to(where)
    _check_sizes(pattern, values, candidates, scores=scores, count=count)
    candidates, scores = _ascending(pattern, candidates, scores)
    _check_candidates(pattern, candidates)
    if isinstance(pattern.granularity, Element):
        count = max(0, min(count, candidates.numel(), pattern.nnz - 1))
    return _Order(values, candidates, scores, count)


def _grown(order: _Order) -> Tensor:
    return order.candidates[top(order.scores, order.number, order="largest_magnitude")]


def _units(pattern: Pattern, order: _Order) -> Pattern:
    """Whole units swapped; of single positions, none."""
    if isinstance(pattern.granularity, Element):
        return pattern
    tiling = pattern.granularity.tiling(pattern.shape)
    units, grow = magnitudes_at(tiling, order.candidates, order.scores)
    return exchange(pattern, -magnitudes(pattern, order.values), units, grow, whole(order.number, tiling.size))


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
