"""Scores by which weights are ranked: one number per position, higher is kept."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["magnitude", "random"]


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|w| of every weight, shaped like it."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform scores in [0, 1), float32 and shaped like the weights, drawn in the order of `weights`.

    Numbers come from the generator's device, so a seed means the same scores wherever the weights are.
    """
    return {
        name: torch.rand(weight.shape, generator=generator, device=generator.device).to(weight.device)
        for name, weight in weights.items()
    }
