"""What a backend is asked, and what it must offer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedsparse.backends.layout import CONTIGUOUS, Layout
from fedsparse.backends.lists import Change
from fedsparse.pattern import Pattern

__all__ = ["Backend", "Case", "ChoosesLayout", "Geometry", "Gradients", "HandsListsOn", "KeepsLists", "layout_of"]


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel moves: pairs are (vertical, horizontal), in pixels."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of (height, width)."""
        spans = (d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True))
        high, wide = (
            (n + 2 * p - span) // s + 1 for n, p, span, s in zip(size, self.padding, spans, self.stride, strict=True)
        )
        return high, wide


@dataclass(frozen=True)
class Case:
    """Everything that decides how a product is computed.

    Attributes:
        shape: dense shape of the weight.
        input: shape of the input, `(batch, in)` or `(batch, channels, height, width)`.
        nnz: kept weights.
        geometry: None for a linear layer.
        dtype: of input and values.
        device: type of the device, as `torch.device.type`.
    """

    shape: tuple[int, ...]
    input: tuple[int, ...]
    nnz: int
    geometry: Geometry | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def op(self) -> str:
        """`linear` or `conv2d`."""
        return "linear" if self.geometry is None else "conv2d"

    @property
    def density(self) -> float:
        """Kept share of the weight."""
        return self.nnz / math.prod(self.shape)

    @cached_property
    def output(self) -> tuple[int, ...]:
        """Shape of the output."""
        if self.geometry is None:
            return self.input[0], self.shape[0]
        kernel, size = (self.shape[2], self.shape[3]), (self.input[2], self.input[3])
        return self.input[0], self.shape[0], *self.geometry.out_size(size, kernel)


class Gradients(NamedTuple):
    """Gradients of one product; None where none was wanted."""

    x: Tensor | None
    values: Tensor | None


class Backend(Protocol):
    """Computes products with a sparse weight. Stateless: everything comes with the call.

    Tensors are contiguous, on the case's device and of its dtype; shapes have been checked by the op. Activations of a
    backend that `ChoosesLayout` may also lie, and its results do lie, as it chooses.
    """

    @property
    def name(self) -> str:
        """The name users select it by."""
        ...

    def refuse(self, case: Case) -> str | None:
        """None, or in words why this backend cannot compute `case`."""
        ...

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        """The product, of shape `case.output`."""
        ...

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        """Gradients of input and values, as far as `want` (x, values) asks for them."""
        ...

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        """The k pruned positions of largest |dL/dw|, in O(k) memory beside one chunk of rows.

        Returns flat positions `(k,)` int64 and signed gradients `(k,)`, by falling magnitude, ties by position;
        k never exceeds the number of pruned positions.
        """
        ...


class ChoosesLayout(Protocol):
    """A backend whose activations and their gradients need not be contiguous."""

    def layout(self, case: Case) -> Layout:
        """How it takes them without copying, and returns them; decided without looking at numbers."""
        ...


def layout_of(backend: Backend, case: Case) -> Layout:
    """How a backend takes and returns activations."""
    # isinstance of a protocol takes half as long as a small product.
    choose: Callable[[Case], Layout] | None = getattr(backend, "layout", None)
    return CONTIGUOUS if choose is None else choose(case)


@runtime_checkable
class KeepsLists(Protocol):
    """A backend that derives lists from a pattern's index tensors and keeps them for later calls."""

    def rewrite(self, changes: Sequence[Change]) -> list[bool]:
        """Writes every list that was derived from the old patterns' index tensors anew, in place, for the new ones.

        A new pattern keeps as many weights as the one before, on any device. A list stays where it is: a captured CUDA
        graph reads it by address. Of each change: False, and nothing of it is written, where a list needs another size.
        """
        ...


@runtime_checkable
class HandsListsOn(Protocol):
    """A backend that makes lists of many patterns faster than of one after the other."""

    def hand_on(self, changes: Sequence[Change]) -> None:
        """Derives from each new pattern what has been derived from the old one, in memory of its own."""
        ...
