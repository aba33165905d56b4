"""The numbers of a layer on a device, and what dense torch computes with them in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends import Case, Geometry
from fedsparse.bench.cases import LayerCase

__all__ = ["Operands", "errors", "geometry", "moved_bytes", "told", "unsearched", "weight_shape"]


@dataclass(frozen=True)
class Operands:
    """Input, gradient of the output, and dense weight of one layer."""

    x: Tensor
    grad: Tensor
    weight: Tensor

    @classmethod
    def draw(cls, case: LayerCase, dtype: torch.dtype, device: str, *, seed: int) -> "Operands":
        """Fresh normal numbers, the same for every engine."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        return cls(normal(*case.input_shape()), normal(*_output_shape(case)), normal(*weight_shape(case)))


def weight_shape(case: LayerCase) -> tuple[int, ...]:
    """Dense shape of the weight."""
    return (case.outputs, case.inputs, *(() if case.size is None else (case.kernel, case.kernel)))


def _output_shape(case: LayerCase) -> tuple[int, ...]:
    if case.size is None:
        return case.batch, case.outputs
    side = (case.size - 1) // case.stride + 1
    return case.batch, case.outputs, side, side


def geometry(case: LayerCase) -> Geometry | None:
    """How the kernel moves; None for a linear layer."""
    if case.size is None:
        return None
    return Geometry((case.stride, case.stride), (case.kernel // 2, case.kernel // 2))


def told(case: LayerCase, nnz: int, dtype: torch.dtype, device: str) -> Case:
    """The case as backends are told of it."""
    return Case(weight_shape(case), case.input_shape(), nnz, geometry(case), dtype, device)


def moved_bytes(case: LayerCase, weights: int, element: int) -> int:
    """Bytes of input, output and `weights` numbers of a weight, each `element` bytes wide, read or written once."""
    sizes = (torch.Size(shape).numel() for shape in (case.input_shape(), _output_shape(case)))
    return element * (sum(sizes) + weights)


def errors(results: dict[str, Tensor], operands: Operands, mask: Tensor | None, case: LayerCase) -> dict[str, float]:
    """Relative error of each op's result against dense float64; weight gradients at the mask where one is given."""
    x, weight = operands.x.double().requires_grad_(), operands.weight.double()
    weight = (weight if mask is None else weight * mask).requires_grad_()
    moves = geometry(case)
    with unsearched():
        y = F.linear(x, weight) if moves is None else F.conv2d(x, weight, None, moves.stride, moves.padding)
        grad_x, grad_w = torch.autograd.grad(y, (x, weight), operands.grad.double())
    wanted = {"forward": y.detach(), "grad_x": grad_x, "grad_w": grad_w if mask is None else grad_w[mask]}
    return {
        op: float((got.double() - wanted[op]).norm() / wanted[op].norm().clamp(min=1e-30))
        for op, got in results.items()
    }


@contextmanager
def unsearched() -> Iterator[None]:
    """Inside, cuDNN takes its first guess: the fastest way in float64 is not worth the search."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
