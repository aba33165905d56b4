"""The ways to use fedsparse that are measured: a new kernel is one entry of `KINDS`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.operands import weight_shape
from benchmarks.gpu.roofline import Work, csr16_work
from fedsparse.bench.cases import LayerCase
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import parse

__all__ = ["KINDS", "Kind", "blocks", "elements", "of_device"]

Draw = Callable[[tuple[int, ...], float, torch.Generator], Tensor]


def elements(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    """Mask of single positions, each kept with probability `density`."""
    return torch.rand(shape, generator=generator) < density


def blocks(side: int) -> Draw:
    """Masks of squares of `side` output by `side` input channels at one place of the kernel, drawn likewise."""

    def draw(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
        units = elements((shape[0] // side, shape[1] // side, *shape[2:]), density, generator)
        return units.repeat_interleave(side, 0).repeat_interleave(side, 1)

    return draw


@dataclass(frozen=True)
class Kind:
    """One kind of pattern, computed by one backend.

    Attributes:
        name: pattern and backend, as tables show it.
        granularity: of the pattern, as `sparsify` takes it.
        draw: a random mask of a shape and a density.
        backend: who computes.
        device: type of the device it computes on.
        precisions: in which it is measured.
        kernels: names of its CUDA kernels, as the profiler shows them, the most important first.
        work: what the kernels of one op do, for the estimate; None where nobody has counted it.
    """

    name: str
    granularity: str
    draw: Draw
    backend: str
    device: str
    precisions: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    work: Callable[[LayerCase, str, int, str], list[Work]] | None = None

    def pattern(self, case: LayerCase, *, seed: int) -> Pattern:
        """A random pattern of the layer's weight, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        mask = self.draw(weight_shape(case), case.density, generator)
        return Pattern.from_mask(mask, parse(self.granularity))


KINDS: tuple[Kind, ...] = (
    Kind(
        "element/cuda", "element", elements, "cuda", "cuda", ("fp32", "bf16"),
        ("gather_kernel", "correlation_kernel"), csr16_work,
    ),
    Kind("element/cpu", "element", elements, "cpu", "cpu", ("fp32",)),  # of the dry run
)  # fmt: skip


def of_device(device: str) -> list[Kind]:
    """Kinds that compute there."""
    return [kind for kind in KINDS if kind.device == device]
