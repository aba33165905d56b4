"""Random masks whose rows, or rows and inputs, come in runs that are kept or pruned together."""

import torch
from torch import Tensor


def vector_mask(shape: tuple[int, ...], rows: int, density: float, seed: int = 0) -> Tensor:
    """Runs of `rows` output channels keep the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand((shape[0] // rows, *shape[1:]), generator=generator) < density
    return kept.repeat_interleave(rows, 0)


def block_mask(shape: tuple[int, ...], size: int, density: float, seed: int = 0) -> Tensor:
    """Squares of output and input channels are kept together at each place of the kernel."""
    return vector_mask((shape[0], shape[1] // size, *shape[2:]), size, density, seed).repeat_interleave(size, 1)
