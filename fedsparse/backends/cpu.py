"""The C++ kernels: float32 products vectorised over the batch, threaded with torch's threads."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address
from fedsparse.backends.base import Backend, Case, Gradients
from fedsparse.pattern import Pattern

__all__ = ["CpuBackend"]

_LIMIT = 1 << 31


@cache
def _best() -> str:
    return _native.instruction_sets()[0]


@dataclass(frozen=True)
class CpuBackend:
    """Gather kernels over batch-innermost planes (csrc/cpu/gather.h).

    Attributes:
        isa: instruction set, one of `fedsparse._native.instruction_sets()`; None takes the best.
    """

    isa: str | None = None
    name = "cpu"

    def refuse(self, case: Case) -> str | None:
        if case.device != "cpu":
            return f"cpu kernels read main memory, the tensors are on {case.device}"
        if case.dtype != torch.float32:
            return f"cpu kernels compute float32, the tensors are {str(case.dtype).removeprefix('torch.')}"
        if case.input[0] == 0:
            return "the batch is empty"
        if _plane_floats(case) >= _LIMIT:
            return f"offsets inside 16 images of shape {case.input[1:]} and their border exceed 32 bits"
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        native, problem = _native.extension(), self._problem(pattern, case)
        y = x.new_empty(case.output)
        arguments = (address(x), address(values), address(bias), address(y))
        workspace = _workspace(native.forward(problem, *arguments, 0))
        native.forward(problem, *arguments, address(workspace))
        return y

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        native, problem = _native.extension(), self._problem(pattern, case)
        grad_x = torch.empty_like(x) if want[0] else None
        grad_values = torch.empty_like(values) if want[1] else None
        arguments = (address(grad), address(x), address(values), address(grad_x), address(grad_values))
        workspace = _workspace(native.backward(problem, *arguments, 0))
        native.backward(problem, *arguments, address(workspace))
        return Gradients(grad_x, grad_values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        native, problem = _native.extension(), self._problem(pattern, case)
        positions, gradients = torch.empty(k, dtype=torch.int64), torch.empty(k)
        arguments = (address(grad), address(x), k, address(positions), address(gradients))
        workspace = _workspace(native.topk_pruned(problem, *arguments, 0))
        native.topk_pruned(problem, *arguments, address(workspace))
        return positions, gradients

    def _problem(self, pattern: Pattern, case: Case) -> object:
        native, threads, isa = _native.extension(), torch.get_num_threads(), self.isa or _best()
        if case.geometry is None:
            return native.linear_problem(isa, pattern.view, case.input[0], threads)
        g = case.geometry
        sizes = (*case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups)
        return native.conv2d_problem(isa, pattern.view, sizes, threads)


def _workspace(size: int) -> Tensor:
    # From torch's allocator, so that memory measurements see it; 64-byte aligned as the kernels ask.
    return torch.empty(size, dtype=torch.uint8)


def _plane_floats(case: Case) -> int:
    """Upper bound of the floats in the planes of one batch group, input or output side."""
    if case.geometry is None:
        return max(case.shape) * 16 * 16
    g, kernel = case.geometry, case.shape[2:]
    reach = [d * (k - 1) for d, k in zip(g.dilation, kernel, strict=True)]
    (high, wide), (out_high, out_wide) = case.input[2:], case.output[2:]
    source = case.input[1] * ((high + 2 * g.padding[0] + 1) * (wide + 2 * g.padding[1] + 1) + 1)
    target = case.output[1] * ((out_high + 2 * reach[0] + 1) * (out_wide + 2 * reach[1] + 1) + 1)
    return max(source, target) * 16


_: type[Backend] = CpuBackend
