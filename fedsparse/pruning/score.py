"""Scores by which weights are ranked: one number per position, higher is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsparse.pattern import Element, Granularity

__all__ = ["magnitude", "random"]


def magnitude(weights: Mapping[str, Tensor], granularity: Granularity = Element()) -> dict[str, Tensor]:
    """|w| of every weight, shaped like it; in larger units, the root mean square of the unit at each of its weights."""
    return {name: _magnitude(weight.detach(), granularity) for name, weight in weights.items()}


def _magnitude(weight: Tensor, granularity: Granularity) -> Tensor:
    tiling = granularity.tiling(weight.shape)
    if tiling.size == 1:
        return weight.abs()
    squares = tiling.sums(weight.double().square()) / tiling.sizes().to(weight.device)
    return tiling.spread(squares.sqrt()).view(weight.shape)


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores in [0, 1), float32 and shaped like the weights, drawn in the order of `weights`.

    Numbers come from the generator's device, so a seed means the same scores wherever the weights are.
    """
    return {
        name: torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)
        for name, weight in weights.items()
    }
