"""The ways to use fedsparse that are measured: a new kernel is one entry of `KINDS`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.operands import weight_shape
from benchmarks.gpu.work import Count, csr16, strips
from fedsparse.bench.cases import LayerCase
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import parse

__all__ = ["KINDS", "Kind", "elements", "of_device", "units"]

Draw = Callable[[tuple[int, ...], float, torch.Generator], Tensor]


def elements(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    """Mask of single positions, each kept with probability `density`."""
    return torch.rand(shape, generator=generator) < density


def units(outputs: int, inputs: int) -> Draw:
    """Masks of `outputs` by `inputs` neighbouring channels at one place of the kernel, drawn likewise."""

    def draw(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
        drawn = elements((shape[0] // outputs, shape[1] // inputs, *shape[2:]), density, generator)
        return drawn.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)

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
        steps: whether whole training steps are measured, too.
    """

    name: str
    granularity: str
    draw: Draw
    backend: str
    device: str
    precisions: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    work: Count | None = None
    steps: bool = False

    def pattern(self, case: LayerCase, *, seed: int) -> Pattern:
        """A random pattern of the layer's weight, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        mask = self.draw(weight_shape(case), case.density, generator)
        return Pattern.from_mask(mask, parse(self.granularity))


_STRIPS = ("block_gather_kernel", "block_correlation_kernel")
_STRUCTURED = ("bf16", "tf32", "fp32")

KINDS: tuple[Kind, ...] = (
    Kind(
        "block:16/cuda", "block:16", units(16, 16), "cuda", "cuda", _STRUCTURED, _STRIPS,
        strips(16, inputs_alike=True), steps=True,
    ),
    Kind(
        "element/cuda", "element", elements, "cuda", "cuda", ("fp32", "bf16"),
        ("gather_kernel", "correlation_kernel"), csr16, steps=True,
    ),
    Kind(
        "block:32/cuda", "block:32", units(32, 32), "cuda", "cuda", _STRUCTURED, _STRIPS,
        strips(32, inputs_alike=True),
    ),
    Kind(
        "vector:32/cuda", "vector:32", units(32, 1), "cuda", "cuda", ("bf16",), _STRIPS,
        strips(32, inputs_alike=False),
    ),
    # Without a CUDA compiler; what its gathers read from which memory depends on the device's caches.
    Kind("block:32/triton", "block:32", units(32, 32), "triton", "cuda", ("bf16",)),
    Kind("element/cpu", "element", elements, "cpu", "cpu", ("fp32",), steps=True),  # of the dry run
)  # fmt: skip


def of_device(device: str) -> list[Kind]:
    """Kinds that compute there."""
    return [kind for kind in KINDS if kind.device == device]
