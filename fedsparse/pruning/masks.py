"""Masks that keep the highest scores, per layer or over all layers, in whole units. Ties go to the lowest position."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Element, Granularity
from fedsparse.pruning.select import top
from fedsparse.pruning.units import fitting, means

__all__ = ["globally", "layerwise"]


def layerwise(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], granularity: Granularity = Element()
) -> dict[str, Tensor]:
    """Bool mask per weight that keeps its `counts[name]` highest scores.

    Of larger units, those of the highest mean score that fit into that number; where the granularity leaves no choice
    of it, the highest of each pool.

    Raises:
        PatternError: scores and counts name different weights, or `top` refuses a count or score.
    """
    if scores.keys() != counts.keys():
        raise PatternError(f"scores are given for {sorted(scores)}, counts for {sorted(counts)}; names must agree")
    return {name: _mask(score, _highest(score, counts[name], granularity)) for name, score in scores.items()}


def _highest(score: Tensor, count: int, granularity: Granularity) -> Tensor:
    """Flat positions of what is kept of one weight."""
    if isinstance(granularity, Element):
        return top(score, count)
    tiling, score = granularity.tiling(score.shape), score.detach().cpu()
    of_units = means(tiling, score)
    if granularity.share is not None:
        return granularity.fixed_choice(score)
    if tiling.even:
        return tiling.positions(top(of_units, count // tiling.size))
    return tiling.positions(fitting(of_units, tiling.sizes(), count))


def globally(
    scores: Mapping[str, Tensor], total: int, at_least: int = 1, granularity: Granularity = Element()
) -> dict[str, Tensor]:
    """Bool mask per weight that together keep the `total` highest scores of all weights.

    Every weight first keeps its `at_least` highest scores (all of them if it has fewer); the rest of `total`
    goes to the highest remaining scores, ties to the earlier weight and then to the lower position. Of larger units,
    `at_least` counts units, and the rest goes to those of the highest mean score that fit into it. Where the
    granularity leaves no choice of the number, each weight keeps what it asks.

    Raises:
        PatternError: `total` is below what `at_least` asks or above the number of positions; a score is NaN.
    """
    if granularity.share is not None:
        return layerwise(scores, dict.fromkeys(scores, 0), granularity)
    if not isinstance(granularity, Element):
        return _units_globally(scores, total, at_least, granularity)
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


def _units_globally(
    scores: Mapping[str, Tensor], total: int, at_least: int, granularity: Granularity
) -> dict[str, Tensor]:
    tilings = [granularity.tiling(score.shape) for score in scores.values()]
    sizes = torch.cat([tiling.sizes() for tiling in tilings])
    of_units = [means(tiling, score.cpu()) for tiling, score in zip(tilings, scores.values(), strict=True)]
    first = [top(unit_scores, min(at_least, len(unit_scores))) for unit_scores in of_units]
    taken = torch.cat([_chosen(len(s), f) for s, f in zip(of_units, first, strict=True)])
    room = total - int(sizes[taken].sum())
    if room < 0 or total > int(sizes.sum()):
        raise PatternError(
            f"cannot keep {total} positions in all: {len(scores)} weights keep at least {at_least} of their units "
            f"({granularity}) each, {total - room} positions in all, and have {int(sizes.sum())}"
        )
    others = (~taken).nonzero().squeeze(1)
    taken[others[fitting(torch.cat(of_units)[others], sizes[others], room)]] = True
    parts = taken.split([tiling.count for tiling in tilings])
    return {
        name: tiling.spread(part).view(score.shape).to(score.device)
        for (name, score), tiling, part in zip(scores.items(), tilings, parts, strict=True)
    }


def _chosen(count: int, places: Tensor) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, places, True)


def _mask(score: Tensor, kept: Tensor) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[kept.to(score.device)] = True
    return mask.view(score.shape)
