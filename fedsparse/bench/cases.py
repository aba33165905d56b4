"""What is measured: layers of the networks of the literature, and the numbers that flow through them."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedsparse.errors import ConfigError
from fedsparse.pattern.granularity import parse

__all__ = [
    "LINEAR",
    "POINTWISE",
    "STRIDED",
    "SYMMETRIC",
    "DenseLayer",
    "LayerCase",
    "Operands",
    "Results",
    "at_densities",
]

DenseLayer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LayerCase:
    """A convolution of square pictures, or a linear layer where `size` is None.

    Attributes:
        inputs: channels, or features, that come in.
        outputs: channels, or features, that go out.
        size: height and width of the pictures.
        kernel: height and width of the kernel, padded by half of it.
        stride: pixels from one place of the kernel to the next.
        batch: samples.
        density: share of the weights that is kept.
        granularity: units that are kept at random, as `fedsparse.pattern.granularity.parse` spells them.
    """

    inputs: int
    outputs: int
    size: int | None
    kernel: int = 3
    stride: int = 1
    batch: int = 64
    density: float = 0.1
    granularity: str = "element"

    def __str__(self) -> str:
        units = "" if self.granularity == "element" else f" {self.granularity}"
        return f"{self.shape} B{self.batch} d{self.density:g}{units}"

    @property
    def shape(self) -> str:
        """The layer in words, without batch and density."""
        if self.size is None:
            return f"linear {self.inputs}->{self.outputs}"
        return f"conv{self.kernel}x{self.kernel}/{self.stride} {self.inputs}->{self.outputs} {self.size}x{self.size}"

    @property
    def places(self) -> int:
        """Pixels of one output picture; 1 for a linear layer."""
        return 1 if self.size is None else ((self.size - 1) // self.stride + 1) ** 2

    def flops(self, nnz: int) -> int:
        """Floating-point operations with `nnz` kept weights, for output, input gradient and weight gradient."""
        return 3 * 2 * nnz * self.batch * self.places

    def layer(self) -> DenseLayer:
        """The dense layer, with fresh weights."""
        if self.size is None:
            return nn.Linear(self.inputs, self.outputs, bias=False)
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, self.kernel // 2, bias=False)

    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.inputs) if self.size is None else (self.batch, self.inputs, self.size, self.size)


# The 3x3 convolutions of ResNet-18 on pictures of 32x32 that keep the number of channels, and those that double it.
_STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))
SYMMETRIC = tuple(LayerCase(channels, channels, size) for channels, size in _STAGES)
STRIDED = tuple(LayerCase(channels, 2 * channels, size, stride=2) for channels, size in _STAGES[:3])
POINTWISE = tuple(replace(case, kernel=1) for case in STRIDED)
LINEAR = tuple(LayerCase(inputs, outputs, None) for inputs, outputs in ((512, 512), (784, 256), (4096, 4096)))


def at_densities(cases: Iterable[LayerCase], densities: Sequence[float], *, batch: int) -> list[LayerCase]:
    """Every case at every density.

    Raises:
        ConfigError: a density outside (0, 1], or an empty batch.
    """
    wrong = next((density for density in densities if not 0 < density <= 1), None)
    if wrong is not None:
        raise ConfigError(f"density = {wrong:g}: expected a share in (0, 1], for example 0.1")
    if batch < 1:
        raise ConfigError(f"batch = {batch}: expected at least 1 sample")
    cases = list(cases)
    return [replace(case, density=density, batch=batch) for density in densities for case in cases]


class Results(NamedTuple):
    """What forward and backward of one layer give; `grad_kept` is of the kept weights, in any order."""

    y: Tensor
    grad_x: Tensor
    grad_kept: Tensor

    def error(self, truth: "Results") -> float:
        """Largest relative error of the three, in the Euclidean norm; infinite where shapes differ."""
        mine, true = (r._replace(grad_kept=r.grad_kept.flatten().sort().values) for r in (self, truth))
        return max(_relative_error(got, wanted) for got, wanted in zip(mine, true, strict=True))


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    error = float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return math.inf if math.isnan(error) else error


class Operands:
    """The numbers of a case, the same for every engine.

    Attributes:
        case: what they are for.
        kept: bool mask of the weight.
        dense: the layer, its pruned weights 0.
        x: input.
        grad: gradient of the output.
    """

    def __init__(self, case: LayerCase, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.case = case
        self.dense = case.layer()
        units = parse(case.granularity).tiling(self.dense.weight.shape)
        kept = torch.rand(units.count, generator=generator) < case.density
        self.kept = units.spread(kept).view(self.dense.weight.shape)
        with torch.no_grad():
            self.dense.weight.copy_(torch.randn(self.kept.shape, generator=generator) * self.kept)
        self.x = torch.randn(case.input_shape(), generator=generator)
        with torch.no_grad():
            self.grad = torch.randn(self.dense(self.x).shape, generator=generator)

    @property
    def nnz(self) -> int:
        """Kept weights."""
        return int(self.kept.sum())

    @cached_property
    def truth(self) -> Results:
        """What dense torch computes in float64."""
        layer, x = copy.deepcopy(self.dense).double(), self.x.double().requires_grad_()
        y = layer(x)
        grad_x, grad_weight = torch.autograd.grad(y, (x, layer.weight), self.grad.double())
        return Results(y.detach(), grad_x, grad_weight[self.kept])
