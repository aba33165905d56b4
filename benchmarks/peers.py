"""The same layer in every engine: forward, and backward to input and weight, as callables to be timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs

__all__ = ["LayerCase", "peers", "step"]


@dataclass(frozen=True)
class LayerCase:
    """A convolution of square pictures, or a linear layer where `size` is None."""

    inputs: int
    outputs: int
    size: int | None
    kernel: int = 3
    stride: int = 1
    batch: int = 64
    density: float = 0.1

    def __str__(self) -> str:
        if self.size is None:
            return f"linear {self.inputs}->{self.outputs} B{self.batch} d{self.density}"
        return (
            f"conv{self.kernel}x{self.kernel}/{self.stride} {self.inputs}->{self.outputs} "
            f"{self.size}x{self.size} B{self.batch} d{self.density}"
        )

    def layer(self) -> nn.Linear | nn.Conv2d:
        """The dense layer."""
        if self.size is None:
            return nn.Linear(self.inputs, self.outputs, bias=False)
        pad = self.kernel // 2
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, pad, bias=False)

    def example(self, generator: torch.Generator) -> Tensor:
        """A random input."""
        shape = (self.batch, self.inputs) if self.size is None else (self.batch, self.inputs, self.size, self.size)
        return torch.randn(shape, generator=generator)


def peers(case: LayerCase, generator: torch.Generator) -> dict[str, Callable[[], object]]:
    """Forward and backward of the case by fedsparse and by torch dense, once its layouts allow.

    The sparse result is checked against float64 first: a wrong answer is not timed.
    """
    dense, x = case.layer(), case.example(generator)
    kept = torch.rand(dense.weight.shape, generator=generator) < case.density
    with torch.no_grad():
        dense.weight.mul_(kept)
    kind = fs.nn.SparseLinear if isinstance(dense, nn.Linear) else fs.nn.SparseConv2d
    sparse = kind.from_dense(dense, kept)
    sparse.set_backend("cpu")
    _check(sparse, dense, x)
    runs = {"fedsparse": step(sparse, x), "torch dense": step(dense, x)}
    if isinstance(dense, nn.Conv2d):
        last = nn.Conv2d.to(case.layer(), memory_format=torch.channels_last)
        last.load_state_dict(dense.state_dict())
        runs["torch dense channels_last"] = step(last, x.contiguous(memory_format=torch.channels_last))
    return runs


def step(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward of a layer, to input and parameters, as a callable."""
    x = x.detach().requires_grad_()
    leaves = [x, *layer.parameters()]
    with torch.no_grad():
        grad = torch.randn_like(layer(x))

    def run() -> object:
        return torch.autograd.grad(layer(x), leaves, grad)

    return run


def _check(sparse: nn.Module, dense: nn.Linear | nn.Conv2d, x: Tensor) -> None:
    weight = dense.weight.detach().double()
    if isinstance(dense, nn.Linear):
        exact = F.linear(x.double(), weight)
    else:
        exact = F.conv2d(x.double(), weight, stride=dense.stride, padding=dense.padding)
    error = float((sparse(x).detach().double() - exact).norm() / exact.norm().clamp(min=1e-30))
    if error > 2e-6:
        raise AssertionError(f"wrong answer: relative error {error:.2e} against float64")
