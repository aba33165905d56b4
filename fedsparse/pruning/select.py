"""Exact selection of the highest of some scores. Ties go to the lowest position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern.positions import (
    Order,
    by_kernel,
    counted,
    first_in_order,
    highest_of_each,
    mirrored,
    selectable,
    smallest_of_each,
    together,
)

__all__ = ["smallest", "smallest_and_largest", "top", "top_of_each"]


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


def smallest(layers: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Of each layer the numbers of its `counts[i]` smallest |values|, as `top` gives them, in one launch on a device.

    Args:
        layers: of any shapes and any real dtypes.
        counts: as many.

    Raises:
        PatternError: a count is negative or above the size of its layer, a value is NaN.
    """
    layers = [layer.detach() for layer in layers]
    for layer, count in zip(layers, counts, strict=True):
        _check(count, layer.numel(), 0)
    if not layers or not by_kernel(layers):
        return [top(layer, count, order="smallest_magnitude") for layer, count in zip(layers, counts, strict=True)]
    found, unordered = smallest_of_each(layers, counts)
    if bool(unordered):
        _refuse_nan(layers)
    return found


def top_of_each(layers: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """The `counts[i]` largest of each layer, as `top` gives them, of all at once where they lie on one CUDA device.

    Raises:
        PatternError: as `smallest`.
    """
    if not layers or not together(layers):
        return [top(layer, count) for layer, count in zip(layers, counts, strict=True)]
    for layer, count in zip(layers, counts, strict=True):
        _check(count, layer.numel(), 0)
    found, unordered = highest_of_each([layer.detach() for layer in layers], counts)
    if bool(unordered):
        _refuse_nan(layers)
    return found


def _refuse_nan(layers: Sequence[Tensor]) -> None:
    for layer in layers:
        _check(0, layer.numel(), int(layer.isnan().sum()))


def smallest_and_largest(
    values: Sequence[Tensor], scores: Sequence[Tensor], counts: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each pair of layers the numbers of the `counts[i]` smallest |values| and largest |scores|; as `smallest`.

    Raises:
        PatternError: as `smallest`.
    """
    scores = [layer.detach() for layer in scores]
    if values and by_kernel([*values, *scores]):
        found = smallest([*values, *mirrored(scores)], [*counts, *counts])
        return found[: len(values)], found[len(values) :]
    largest = [top(layer, count, order="largest_magnitude") for layer, count in zip(scores, counts, strict=True)]
    return smallest(values, counts), largest


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
