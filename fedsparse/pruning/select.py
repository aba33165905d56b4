"""Exact selection of the highest scores, per layer or over all layers. Ties go to the lowest position."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern.positions import Order, counted, first_in_order, selectable

__all__ = ["globally", "layerwise", "top"]


def top(scores: Tensor, k: int, *, among: Tensor | None = None, order: Order = "largest") -> Tensor:
    """Flat positions of the `k` scores that come first in `order`, `(k,)` int64, in ascending order of position.

    The result equals the first k of a stable sort: of equal scores the lowest positions are taken.
    The cost is linear in the number of scores.

    Args:
        scores: any shape and any real dtype; infinities are ordered as usual, -0.0 equals 0.0.
        among: bool mask shaped like `scores`; only its True positions may be taken.
        order: `largest`, `largest_magnitude` or `smallest_magnitude`.

    Raises:
        PatternError: k is negative or above the number of candidates, a score is NaN, `among` does not fit.
    """
    if among is not None and (among.dtype != torch.bool or among.shape != scores.shape):
        raise PatternError(
            f"among must be a bool mask of shape {tuple(scores.shape)}, got {among.dtype} of shape {tuple(among.shape)}"
        )
    scores = scores.detach().reshape(-1)
    if among is not None:
        among = among.reshape(-1)
    if selectable(scores):
        return _compiled_top(scores, k, None if among is None else among.cpu(), order)
    if among is None:
        return _torch_top(_ranked(scores, order), k)
    positions = among.nonzero().squeeze(1)
    return positions[_torch_top(_ranked(scores[positions], order), k)]


def _check(k: int, candidates: int, nans: int) -> None:
    if not 0 <= k <= candidates:
        raise PatternError(f"cannot take the {k} highest of {candidates} scores")
    if nans:
        raise PatternError(f"{nans} of {candidates} scores are NaN and have no order")


def _compiled_top(scores: Tensor, k: int, among: Tensor | None, order: Order) -> Tensor:
    among = None if among is None else among.contiguous()
    candidates = scores.numel() if among is None else counted(among)
    _check(k, candidates, 0)
    positions, nans = first_in_order(scores.contiguous(), k, candidates, among, order)
    _check(k, candidates, nans)
    return positions


def _ranked(scores: Tensor, order: Order) -> Tensor:
    """Numbers whose descending order is `order`."""
    if order == "largest":
        return scores
    return scores.abs() if order == "largest_magnitude" else -scores.abs()


def _torch_top(scores: Tensor, k: int) -> Tensor:
    _check(k, scores.numel(), int(scores.isnan().sum()) if scores.is_floating_point() else 0)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.kthvalue(scores, scores.numel() - k + 1).values
    taken = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    taken[ties[: k - int(taken.sum())]] = True
    return taken.nonzero().squeeze(1)


def layerwise(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Bool mask per weight that keeps its `counts[name]` highest scores.

    Raises:
        PatternError: scores and counts name different weights, or `top` refuses a count or score.
    """
    if scores.keys() != counts.keys():
        raise PatternError(f"scores are given for {sorted(scores)}, counts for {sorted(counts)}; names must agree")
    return {name: _mask(score, top(score, counts[name])) for name, score in scores.items()}


def globally(scores: Mapping[str, Tensor], total: int, at_least: int = 1) -> dict[str, Tensor]:
    """Bool mask per weight that together keep the `total` highest scores of all weights.

    Every weight first keeps its `at_least` highest scores (all of them if it has fewer); the rest of `total`
    goes to the highest remaining scores, ties to the earlier weight and then to the lower position.

    Raises:
        PatternError: `total` is below what `at_least` asks or above the number of positions; a score is NaN.
    """
    floors = {name: min(at_least, score.numel()) for name, score in scores.items()}
    size, reserved = sum(score.numel() for score in scores.values()), sum(floors.values())
    if not reserved <= total <= size:
        raise PatternError(
            f"cannot keep {total} positions in all: {len(scores)} weights keep at least {at_least} each, "
            f"{reserved} in all, and have {size} positions"
        )
    masks = layerwise(scores, floors)
    if total == reserved:
        return masks
    every_score = torch.cat([score.detach().reshape(-1) for score in scores.values()])
    taken = torch.cat([mask.reshape(-1) for mask in masks.values()])
    taken[top(every_score, total - reserved, among=~taken)] = True
    parts = torch.split(taken, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _mask(score: Tensor, kept: Tensor) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[kept] = True
    return mask.view(score.shape)
