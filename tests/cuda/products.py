"""Calls csr16 products on the shim as a backend does on a device. Needs numpy, not torch."""

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.cuda.shim import Shim

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
STORAGE = {FLOAT32: np.float32, BFLOAT16: np.uint16, FLOAT16: np.float16}


class ConvShape(ctypes.Structure):
    """fedsparse::ConvShape."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "batch", "in_channels", "height", "width", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w",
            "pad_h", "pad_w", "dilation_h", "dilation_w", "groups",
        )
    ]  # fmt: skip


class _Index(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("wide", ctypes.c_bool)]


class PatternView(ctypes.Structure):
    """fedsparse::PatternView; the transposed lists stay empty."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "taps", "nnz")),
        ("row_start", ctypes.c_void_p),
        ("column", _Index),
        ("column_start", ctypes.c_void_p),
        ("entry", _Index),
        ("rank", _Index),
    ]


class TapList(ctypes.Structure):
    """fedsparse::TapList."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("start", "offset", "value")]

    @classmethod
    def of(cls, *arrays: NDArray) -> "TapList":
        """Of start, offset and value, which have to live as long."""
        return cls(*(array.ctypes.data for array in arrays))


class Results(NamedTuple):
    """In the shapes of output, input and values."""

    y: NDArray
    grad_x: NDArray
    grad_values: NDArray


def as_stored(x: NDArray, dtype: int) -> NDArray:
    """Numbers rounded to nearest even as the device stores them; bfloat16 as its bits."""
    if dtype != BFLOAT16:
        return np.ascontiguousarray(x, STORAGE[dtype])
    word = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((word + 0x7FFF + (word >> 16 & 1)) >> 16).astype(np.uint16)


def as_float(x: NDArray, dtype: int) -> NDArray:
    """Stored numbers as float64."""
    if dtype != BFLOAT16:
        return x.astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def poisoned(shape: tuple[int, ...] | int, dtype: type) -> NDArray:
    """An array in which every byte is 0xFF: NaN as float, -1 as index."""
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF
    return array


@dataclass(frozen=True)
class Product:
    """One product: sizes, kept positions by row, and stored operands.

    Attributes:
        shape: (batch, in, height, width, out, kernel, stride, padding, dilation, groups), 14 numbers.
        row_start, column: as `Pattern` holds them.
        dtype: FLOAT32, BFLOAT16 or FLOAT16.
        x, values, bias, grad: operands as `as_stored` gives them; `bias` may be empty.
    """

    shape: tuple[int, ...]
    row_start: NDArray
    column: NDArray
    dtype: int
    x: NDArray
    values: NDArray
    bias: NDArray
    grad: NDArray

    def run(self, shim: Shim, want: tuple[bool, bool] = (True, True)) -> Results:
        """Forward and, as far as they are wanted, the gradients of x and of the values; others stay poisoned."""
        forward, backward = self.list(shim, False), self.list(shim, True)
        shape, nnz, store = ConvShape(*self.shape), len(self.values), STORAGE[self.dtype]
        x, grad = self.in_lines(shim, self.x), self.in_lines(shim, self.grad)
        bias = self.bias if self.bias.size else None
        y, grad_x, grad_values = poisoned(grad.shape, store), poisoned(x.shape, store), poisoned(nnz, store)
        lists = TapList.of(*forward), TapList.of(*backward)
        shim("fedsparse_cuda_csr16_forward", shape, self.dtype, lists[0], self.values, x, bias, y, None)
        partial = poisoned(shim.value("fedsparse_csr16_partial_size", shape, self.dtype, nnz), np.float32)
        shim(
            "fedsparse_cuda_csr16_backward", shape, self.dtype, nnz, *lists, self.values, grad, x, partial,
            grad_x if want[0] else None, grad_values if want[1] else None, None,
        )  # fmt: skip
        return Results(self._rows(shim, y, self.grad.shape), self._rows(shim, grad_x, self.x.shape), grad_values)

    def list(self, shim: Shim, backward: bool) -> tuple[NDArray, NDArray, NDArray]:
        """start, offset and value of a list; arrays of exactly the sizes asked for."""
        shape, nnz = ConvShape(*self.shape), len(self.values)
        size = shim.value("fedsparse_csr16_start_size", shape, backward, self.dtype)
        start, offset, value = poisoned(size, np.int32), poisoned(nnz, np.uint16), poisoned(nnz, np.int32)
        shim("fedsparse_csr16_list", shape, backward, self.dtype, self.view, start, offset, value)
        return start, offset, value

    @property
    def view(self) -> PatternView:
        """The pattern as the lists are built from it."""
        return PatternView(
            self.shape[4],
            self.shape[1] // self.shape[13],
            self.shape[5] * self.shape[6],
            len(self.values),
            self.row_start.ctypes.data,
            _Index(self.column.ctypes.data, self.column.dtype == np.int32),
        )

    def in_lines(self, shim: Shim, rows: NDArray) -> NDArray:
        """An activation as the kernels take it: batch-innermost, or in lines of 8 samples that are filled up."""
        batch, size = rows.shape[0], math.prod(rows.shape[1:])
        lines = poisoned((-(-batch // 8), size, 8), rows.dtype)
        name = "fedsparse_cuda_to_lines" if batch % 8 else "fedsparse_cuda_transpose"
        shim(name, rows, lines, batch, size, self.dtype, None)
        return lines

    def _rows(self, shim: Shim, lines: NDArray, shape: tuple[int, ...]) -> NDArray:
        rows, batch, size = poisoned(shape, lines.dtype), shape[0], math.prod(shape[1:])
        if batch % 8:
            shim("fedsparse_cuda_from_lines", lines, rows, batch, size, self.dtype, None)
        else:
            shim("fedsparse_cuda_transpose", lines, rows, size, batch, self.dtype, None)
        return rows
