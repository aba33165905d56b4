"""Calls block products on the shim as a backend does on a device. Needs numpy, not torch."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.cuda.products import STORAGE, ConvShape, Product, Results, poisoned
from tests.cuda.shim import Shim


class Lines(NamedTuple):
    """A list of the lines that strips keep."""

    start: NDArray
    offset: NDArray
    value: NDArray

    @property
    def chunks(self) -> int:
        return int(self.start[-1])


@dataclass(frozen=True)
class BlockProduct(Product):
    """A product with a structured weight.

    Attributes:
        widths: of the strips of output and of input channels.
        tf32: whether float32 operands are rounded to TF32.
    """

    widths: tuple[int, int] = (16, 16)
    tf32: bool = False

    def run(self, shim: Shim) -> Results:
        """Forward and both gradients."""
        (wide, tall), shape, store = self.widths, ConvShape(*self.shape), STORAGE[self.dtype]
        forward, backward = self.lines(shim, backward=False), self.lines(shim, backward=True)
        x, grad = self._lines(shim, self.x), self._lines(shim, self.grad)
        bias = self.bias if self.bias.size else None
        y, grad_x = poisoned(grad.shape, store), poisoned(x.shape, store)
        grad_values = poisoned(len(self.values), store)
        shim(
            "fedsparse_cuda_block_forward", shape, self.dtype, wide, self.tf32, forward.start, forward.offset,
            self._packed(shim, forward), x, bias, y, None,
        )  # fmt: skip
        shim(
            "fedsparse_cuda_block_grad_x", shape, self.dtype, tall, self.tf32, backward.start, backward.offset,
            self._packed(shim, backward), grad, grad_x, None,
        )  # fmt: skip
        partial = poisoned(
            shim.value("fedsparse_block_partial_size", shape, self.dtype, wide, forward.chunks), np.float32
        )
        shim(
            "fedsparse_cuda_block_grad_values", shape, self.dtype, wide, self.tf32, forward.chunks, forward.start,
            forward.offset, forward.value, grad, x, partial, grad_values, None,
        )  # fmt: skip
        return Results(self._rows(shim, y, self.grad.shape), self._rows(shim, grad_x, self.x.shape), grad_values)

    def lines(self, shim: Shim, *, backward: bool) -> Lines:
        """A list as the reference makes it, in arrays of exactly the sizes asked for."""
        shape, width, view = ConvShape(*self.shape), self.widths[backward], self.view
        start = poisoned(shim.value("fedsparse_block_start_size", shape, backward, self.dtype, width), np.int32)
        shim("reference_block_start", shape, backward, self.dtype, width, view, start)
        offset = poisoned(int(start[-1]) * 16, np.uint16)
        value = poisoned(int(start[-1]) * 16 * width, np.int32)
        shim("reference_block_list", shape, backward, self.dtype, width, view, start, offset, value)
        return Lines(start, offset, value)

    def _packed(self, shim: Shim, lines: Lines) -> NDArray:
        packed = poisoned(len(lines.value), self.values.dtype)
        shim("fedsparse_cuda_block_pack", self.dtype, len(packed), lines.value, self.values, packed, None)
        return packed
