"""Awkward products, checked against dense float64 torch; for this project's tests and for authors of backends.

A backend is conformant when

    generator = numpy.random.default_rng(0)
    for case in product_cases(generator, 100):
        check_backend(backend, case)

passes. A failed check raises `AssertionError` naming the quantity, the case and the error found.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends import Backend, Case, Geometry
from fedsparse.pattern import Pattern

__all__ = [
    "Operands",
    "ProductCase",
    "Truth",
    "check_backend",
    "check_products",
    "product_cases",
    "relative_error",
]

FLOAT32_TOLERANCE = 2e-6
# Results below this share of their terms' magnitudes are compared with the latter.
_CANCELLED = 0.05

# A linear batch of 300 is more than 16 lines of 16 lanes, 90,000 weights are more than one chunk of 65,536.
_BATCHES = (1, 7, 16, 33)
_LINEAR_BATCHES = (*_BATCHES, 300)
_FEATURES = (1, 2, 5, 17, 40, 97)
_KERNELS = (1, 2, 3, 5, 7)
_DENSITIES = (0.0, 0.01, 0.1, 0.3, 1.0)


class Operands(NamedTuple):
    """Tensors of one product: `x`, `values` and `grad` have the shapes of input, values and output."""

    x: Tensor
    values: Tensor
    bias: Tensor | None
    grad: Tensor


class Truth(NamedTuple):
    """What dense torch computes in float64: output, gradients of input and dense weight."""

    y: Tensor
    grad_x: Tensor
    grad_weight: Tensor


@dataclass(frozen=True)
class ProductCase:
    """One product to check: sizes, kept positions, and the seed of its numbers.

    Attributes:
        case: what a backend is told.
        pattern: kept positions.
        bias: whether the product has one.
        seed: of the operands.
    """

    case: Case
    pattern: Pattern
    bias: bool
    seed: int

    def __str__(self) -> str:
        g = self.case.geometry
        moves = f" stride {g.stride} padding {g.padding} dilation {g.dilation} groups {g.groups}" if g else ""
        return (
            f"{self.case.op} {self.case.shape} on {self.case.input}, {self.pattern.nnz} kept{moves}, seed {self.seed}"
        )

    def operands(self, *, integers: bool = False) -> Operands:
        """Fresh operands of the case's dtype, the same at every call.

        Args:
            integers: whole numbers in [-2, 2] instead of normal ones, so that sums are exact and gradients tie.
        """
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            if integers:
                return torch.randint(-2, 3, shape, generator=generator).to(self.case.dtype)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.case.dtype)

        x, values, bias = draw(*self.case.input), draw(self.pattern.nnz), draw(self.case.shape[0])
        return Operands(x, values, bias if self.bias else None, draw(*self.case.output))

    def truth(self, operands: Operands) -> Truth:
        """Output and gradients of the dense product in float64."""
        x = operands.x.detach().double().requires_grad_()
        weight = torch.zeros(self.pattern.size, dtype=torch.float64)
        weight[self.pattern.mask().view(-1)] = operands.values.double()
        weight = weight.view(self.pattern.shape).requires_grad_()
        bias = None if operands.bias is None else operands.bias.double()
        g = self.case.geometry
        if g is None:
            y = F.linear(x, weight, bias)
        else:
            y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
        grad_x, grad_weight = torch.autograd.grad(y, (x, weight), operands.grad.double())
        return Truth(y.detach(), grad_x, grad_weight)


def relative_error(got: Tensor, wanted: Tensor, *, floor: float = 0.0) -> float:
    """|got - wanted| / max(|wanted|, floor) in float64 and the Euclidean norm.

    Infinite where `got` has a NaN, or where both are to be zero and `got` is not.

    Raises:
        AssertionError: the shapes differ.
    """
    if got.shape != wanted.shape:
        raise AssertionError(f"expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    error = float((got.double() - wanted.double()).norm())
    scale = max(float(wanted.double().norm()), floor)
    if math.isnan(error):
        return math.inf
    if scale == 0:
        return math.inf if error else 0.0
    return error / scale


def check_backend(backend: Backend, product: ProductCase, *, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Compares forward, every gradient and the largest pruned gradients with dense float64 torch.

    Args:
        backend: anything that follows the `Backend` protocol and does not refuse the case.
        product: the case, in the dtype to check.
        tolerance: largest relative error allowed; where terms cancel to under a twentieth of the sum of their
            magnitudes, relative to that twentieth.

    Raises:
        AssertionError: the backend refuses, is off by more than `tolerance`, or finds other positions than a
            stable sort of the dense gradient does.
    """
    reason = backend.refuse(product.case)
    if reason is not None:
        raise AssertionError(f"{backend.name} refuses {product}: {reason}")
    check_products(backend, product, tolerance=tolerance)
    _check_topk(backend, product)


def check_products(backend: Backend, product: ProductCase, *, tolerance: float) -> None:
    """The part of `check_backend` that holds in every precision: forward and gradients.

    Raises:
        AssertionError: the backend is off by more than `tolerance`.
    """
    case, pattern, mask = product.case, product.pattern, product.pattern.mask()
    operands = product.operands()
    x, values, bias, grad = operands
    truth = product.truth(operands)
    # Terms of either sign may cancel to almost nothing, which no float32 sum follows: the sum of their
    # magnitudes tells how much rounding to expect.
    terms = product.truth(Operands(x.abs(), values.abs(), None if bias is None else bias.abs(), grad.abs()))
    y = backend.forward(x, values, pattern, bias, case)
    _compare(f"{backend.name}: output", y, truth.y, terms.y, product, tolerance)
    for want in ((True, True), (True, False), (False, True)):
        got = backend.backward(grad, x, values, pattern, want, case)
        if (got.x is not None, got.values is not None) != want:
            raise AssertionError(f"{backend.name}: want={want} gave other gradients for {product}")
        what = f"{backend.name}: gradient, with want={want}, of"
        if got.x is not None:
            _compare(f"{what} input", got.x, truth.grad_x, terms.grad_x, product, tolerance)
        if got.values is not None:
            _compare(
                f"{what} values",
                got.values,
                truth.grad_weight[mask],
                terms.grad_weight[mask],
                product,
                tolerance,
            )


def _compare(what: str, got: Tensor, wanted: Tensor, terms: Tensor, product: ProductCase, tolerance: float) -> None:
    if got.dtype != product.case.dtype:
        raise AssertionError(f"{what} has dtype {got.dtype}, expected {product.case.dtype}")
    error = relative_error(got, wanted, floor=_CANCELLED * float(terms.norm()))
    if not error < tolerance:
        raise AssertionError(f"{what} is off by {error:.2e} (at most {tolerance:.0e}) for {product}")


def _check_topk(backend: Backend, product: ProductCase) -> None:
    operands = product.operands(integers=True)
    pruned = (~product.pattern.mask()).view(-1).nonzero().squeeze(1)
    gradients = product.truth(operands).grad_weight.view(-1)[pruned]
    order = torch.sort(gradients.abs(), descending=True, stable=True).indices
    for k in sorted({0, 1, len(pruned) // 2, len(pruned)}):
        if k > len(pruned):
            continue
        positions, values = backend.topk_pruned(operands.grad, operands.x, product.pattern, k, product.case)
        best = order[:k]
        if positions.dtype != torch.int64 or not torch.equal(positions, pruned[best]):
            raise AssertionError(f"{backend.name}: the {k} largest pruned gradients are elsewhere for {product}")
        if not torch.equal(values, gradients[best].to(product.case.dtype)):
            raise AssertionError(f"{backend.name}: the {k} largest pruned gradients have other values for {product}")


def product_cases(
    generator: np.random.Generator, count: int, *, dtype: torch.dtype = torch.float32
) -> Iterator[ProductCase]:
    """`count` cases, two convolutions to each linear layer, of sizes that are hard to get right.

    Odd sizes, strides beyond the kernel, paddings beyond the kernel, lopsided kernels from 1 to 7, depthwise
    groups, 1x1 pictures, batches that fill no vector, densities from 0 to 1, rows and inputs that keep nothing.
    """
    for number in range(count):
        case = _linear_case(generator, dtype) if number % 3 == 0 else _conv2d_case(generator, dtype)
        mask = _mask(generator, case.shape)
        seed = int(generator.integers(1 << 31))
        pattern = Pattern.from_mask(mask)
        told = Case(case.shape, case.input, pattern.nnz, case.geometry, dtype)
        yield ProductCase(told, pattern, bool(generator.integers(2)), seed)


def _one(generator: np.random.Generator, choices: tuple[int, ...]) -> int:
    return int(generator.choice(choices))


def _linear_case(generator: np.random.Generator, dtype: torch.dtype) -> Case:
    wide = (300, 300) if generator.random() < 0.1 else None
    shape = wide or (_one(generator, _FEATURES), _one(generator, _FEATURES))
    return Case(shape, (_one(generator, _LINEAR_BATCHES), shape[1]), 0, None, dtype)


def _conv2d_case(generator: np.random.Generator, dtype: torch.dtype) -> Case:
    """Sizes are drawn until the kernel fits the padded picture."""
    while True:
        kernel = _one(generator, _KERNELS), _one(generator, _KERNELS)
        stride, dilation = _pair(generator, 1, 3), _pair(generator, 1, 2)
        padding = _pair(generator, 0, 2 * max(kernel) if generator.random() < 0.15 else max(kernel) // 2)
        size = (1, 1) if generator.random() < 0.1 else _pair(generator, 2, 11)
        groups, inputs, outputs = _channels(generator)
        geometry = Geometry(stride, padding, dilation, groups)
        if min(geometry.out_size(size, kernel)) >= 1:
            shape = (outputs * groups, inputs, *kernel)
            return Case(shape, (_one(generator, _BATCHES), inputs * groups, *size), 0, geometry, dtype)


def _channels(generator: np.random.Generator) -> tuple[int, int, int]:
    """Groups, and input and output channels of each: plain, grouped, depthwise, or many."""
    kind = generator.choice(("plain", "grouped", "depthwise", "many"), p=(0.5, 0.2, 0.15, 0.15))
    if kind == "depthwise":
        return int(generator.integers(2, 10)), 1, int(generator.integers(1, 3))
    if kind == "many":
        return 1, int(generator.integers(24, 49)), int(generator.integers(3, 14))
    groups = 1 if kind == "plain" else int(generator.integers(2, 4))
    return groups, int(generator.integers(1, 7)), int(generator.integers(1, 7))


def _pair(generator: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    """Two whole numbers in [low, high]."""
    vertical, horizontal = generator.integers(low, high + 1, 2)
    return int(vertical), int(horizontal)


def _mask(generator: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    kept = generator.random(shape) < generator.choice(_DENSITIES)
    if generator.random() < 0.3:
        kept[generator.random(shape[0]) < 0.4] = False
    if generator.random() < 0.3:
        kept[:, generator.random(shape[1]) < 0.4] = False
    return torch.from_numpy(kept)
