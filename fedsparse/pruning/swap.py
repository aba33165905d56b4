"""Drop and regrow: exchange kept positions for pruned ones, their number unchanged."""

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern
from fedsparse.pruning.select import top

__all__ = ["swap"]


def swap(pattern: Pattern, values: Tensor, candidates: Tensor, *, scores: Tensor, count: int) -> Pattern:
    """Pattern with the `count` smallest |values| dropped and the `count` candidates of largest |score| grown.

    A dropped position cannot come back in the same swap, because only positions pruned at entry may be
    candidates. With fewer candidates, fewer are swapped; the last weight is never dropped. Ties go to the
    lowest flat position. Runs on the CPU.

    Args:
        values: `(pattern.nnz,)` kept weights.
        candidates: `(c,)` int64 flat positions, distinct and pruned in `pattern`, in any order.
        scores: `(c,)` score of each candidate, e.g. its gradient.

    Raises:
        PatternError: a candidate is kept, repeated or out of range, sizes disagree, a value or score is NaN.
    """
    values, candidates, scores = values.detach().cpu(), candidates.cpu(), scores.detach().cpu()
    _check_sizes(pattern, values, candidates, scores=scores, count=count)
    kept = pattern.to("cpu").flat
    candidates, order = candidates.sort()
    _check_candidates(pattern, kept, candidates)
    count = min(count, candidates.numel(), pattern.nnz - 1)
    if count <= 0:
        return pattern
    grown = candidates[top(scores[order].abs(), count)]
    stays = torch.ones(pattern.nnz, dtype=torch.bool)
    stays[top(-values.abs(), count)] = False
    return Pattern.from_flat(pattern.shape, torch.cat([kept[stays], grown]).sort().values, pattern.granularity)


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


def _check_candidates(pattern: Pattern, kept: Tensor, candidates: Tensor) -> None:
    """Refuse ascending candidates that are out of range, repeated or kept."""
    if candidates.numel() == 0:
        return
    if candidates[0] < 0 or candidates[-1] >= pattern.size:
        raise PatternError(
            f"candidates must lie in [0, {pattern.size}) for a weight of shape {pattern.shape}, "
            f"got positions from {int(candidates[0])} to {int(candidates[-1])}"
        )
    repeated = candidates[1:] == candidates[:-1]
    if bool(repeated.any()):
        raise PatternError(f"candidate {int(candidates[1:][repeated][0])} is given more than once")
    active = torch.isin(candidates, kept, assume_unique=True)
    if bool(active.any()):
        raise PatternError(
            f"candidate {int(candidates[active][0])} is kept already; only pruned positions can be grown"
        )
