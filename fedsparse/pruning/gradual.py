"""Pruning before training in several steps, each of which scores what the ones before have left."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsparse.errors import ConfigError
from fedsparse.pattern import Element, Granularity
from fedsparse.pruning.allocate import allocate, budget
from fedsparse.pruning.eligible import prunable
from fedsparse.pruning.masks import globally, layerwise

__all__ = ["gradually"]

Scorer = Callable[[nn.Module], Mapping[str, Tensor]]


def gradually(
    model: nn.Module,
    scorer: Scorer,
    densities: Sequence[float],
    *,
    distribution: str = "erk",
    exclude: str | Collection[str | nn.Module] = "output",
    granularity: Granularity = Element(),
) -> dict[str, Tensor]:
    """Scores of the last step, -inf where an earlier one has pruned; for `fedsparse.sparsify` at the last density.

    Steps keep as many weights as `sparsify` would at their density; a layer may keep one more before the last step, so
    that rounding never asks it for weights that are gone.

    Args:
        model: plain and dense; left as it is.
        scorer: called on a copy whose pruned weights are 0; higher is kept.
        densities: overall density after each step, never rising, as from `density_path`.
        distribution, exclude, granularity: as for `sparsify`. One that fixes the density allows a single step.

    Raises:
        ConfigError: no densities, or rising ones.
        InfeasibleDensityError: as `sparsify`.
    """
    if not densities or any(later > earlier for earlier, later in pairwise(densities)):
        raise ConfigError(f"densities of pruning steps must not rise, got {list(densities)}")
    probe = copy.deepcopy(model)
    weights = prunable(probe, exclude)
    others = sum(p.numel() for p in probe.parameters() if p.requires_grad) - sum(w.numel() for w in weights.values())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    totals = [budget(shapes, density, others=others, granularity=granularity) for density in densities[:-1]]
    if distribution != "global":
        share = partial(allocate, shapes, distribution=distribution, others=others, granularity=granularity)
        counts = _falling([share(density) for density in densities])
    for step, total in enumerate(totals):
        scores = _hidden(scorer(probe), kept)
        if distribution == "global":
            kept = globally(scores, total, granularity=granularity)
        else:
            kept = layerwise(scores, counts[step], granularity)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~kept[name], 0)
    return _hidden(scorer(probe), kept)


def _falling(steps: list[dict[str, int]]) -> list[dict[str, int]]:
    """The counts of each step, raised to those of later steps where rounding had put them below."""
    for earlier, later in reversed(list(pairwise(steps))):
        for name in earlier:
            earlier[name] = max(earlier[name], later[name])
    return steps


def _hidden(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: scores[name].masked_fill(~mask, -math.inf) for name, mask in kept.items()}
