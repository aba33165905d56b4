"""Drop and regrow: exchange kept positions for pruned ones, their number unchanged."""

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Element, Pattern
from fedsparse.pattern.positions import ascending
from fedsparse.pruning.select import top
from fedsparse.pruning.units import exchange, magnitudes, magnitudes_at, whole

__all__ = ["swap"]


def swap(pattern: Pattern, values: Tensor, candidates: Tensor, *, scores: Tensor, count: int) -> Pattern:
    """Pattern with the `count` smallest |values| dropped and the `count` candidates of largest |score| grown.

    A dropped position cannot come back in the same swap, because only positions pruned at entry may be
    candidates. With fewer candidates, fewer are swapped; the last weight is never dropped. Ties go to the
    lowest flat position. Runs on the CPU.

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
    values, candidates, scores = values.detach().cpu(), candidates.cpu(), scores.detach().cpu()
    _check_sizes(pattern, values, candidates, scores=scores, count=count)
    candidates, scores = _ascending(pattern, candidates, scores)
    _check_candidates(pattern, candidates)
    if not isinstance(pattern.granularity, Element):
        tiling = pattern.granularity.tiling(pattern.shape)
        units, grow = magnitudes_at(tiling, candidates, scores)
        return exchange(pattern, -magnitudes(pattern, values), units, grow, whole(count, tiling.size))
    count = min(count, candidates.numel(), pattern.nnz - 1)
    if count <= 0:
        return pattern
    grown = candidates[top(scores, count, order="largest_magnitude")]
    dropped = top(values, count, order="smallest_magnitude")
    return pattern.exchanged(dropped, grown)


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
