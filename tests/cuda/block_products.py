"""Calls block products on the shim as a backend does on a device. Needs numpy, not torch."""

import ctypes
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

    @property
    def room(self) -> int:
        """Chunks that fit."""
        return len(self.offset) // 16

    def listed(self, width: int) -> "StripList":
        """As the kernels take it, for strips of `width`."""
        return StripList(width, self.room, *(array.ctypes.data for array in self))


class StripList(ctypes.Structure):
    """fedsparse::StripList; its arrays have to live as long."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("width", "room")),
        *((name, ctypes.c_void_p) for name in ("start", "offset", "value")),
    ]


@dataclass(frozen=True)
class BlockProduct(Product):
    """A product with a structured weight.

    Attributes:
        widths: of the strips of output and of input channels.
        tf32: whether float32 operands are rounded to TF32.
        spare: chunks that lists have room for besides their own.
    """

    widths: tuple[int, int] = (16, 16)
    tf32: bool = False
    spare: int = 0

    def run(self, shim: Shim, want: tuple[bool, bool] = (True, True)) -> Results:
        (wide, tall), shape, store = self.widths, ConvShape(*self.shape), STORAGE[self.dtype]
        forward, backward = self.lines(shim, backward=False), self.lines(shim, backward=True)
        x, grad = self.in_lines(shim, self.x), self.in_lines(shim, self.grad)
        bias = self.bias if self.bias.size else None
        y, grad_x = poisoned(grad.shape, store), poisoned(x.shape, store)
        grad_values = poisoned(len(self.values), store)
        lists = forward.listed(wide), backward.listed(tall)
        shim(
            "fedsparse_cuda_block_forward", shape, self.dtype, self.tf32, lists[0], self.values,
            poisoned(len(forward.value), store), x, bias, y, None,
        )  # fmt: skip
        partial = poisoned(
            shim.value("fedsparse_block_partial_size", shape, self.dtype, wide, forward.room), np.float32
        )
        shim(
            "fedsparse_cuda_block_backward", shape, self.dtype, self.tf32, *lists, self.values,
            poisoned(len(backward.value), store), grad, x, partial, grad_x if want[0] else None,
            grad_values if want[1] else None, None,
        )  # fmt: skip
        return Results(self._rows(shim, y, self.grad.shape), self._rows(shim, grad_x, self.x.shape), grad_values)

    def lines(self, shim: Shim, *, backward: bool) -> Lines:
        """A list as the reference makes it; what is spare names the first value, at no line."""
        shape, width, view = ConvShape(*self.shape), self.widths[backward], self.view
        start = poisoned(shim.value("fedsparse_block_start_size", shape, backward, self.dtype, width), np.int32)
        shim("reference_block_start", shape, backward, self.dtype, width, view, start)
        offset = poisoned((int(start[-1]) + self.spare) * 16, np.uint16)
        value = np.zeros((int(start[-1]) + self.spare) * 16 * width, np.int32)
        value.view(np.uint8)[: int(start[-1]) * 64 * width] = 0xFF
        shim("reference_block_list", shape, backward, self.dtype, width, view, start, offset, value)
        return Lines(start, offset, value)
