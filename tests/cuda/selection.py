"""Calls selection kernels on the shim as a backend does on a device. Needs numpy, not torch."""

import ctypes
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.cuda.block_products import BlockProduct, Lines
from tests.cuda.products import FLOAT32, STORAGE, ConvShape, Product, poisoned
from tests.cuda.rebuilding import WeightRows, weight_rows
from tests.cuda.shim import Shim


def workspace(shim: Shim, name: str, *arguments: object) -> NDArray:
    """What the function `name` asks for, holding nothing; of exactly that size."""
    size = shim.value(name, *arguments)
    assert size > 0
    return poisoned(size // 8, np.int64)


def dense_gradient(shim: Shim, product: Product, *, tf32: bool = False) -> NDArray:
    """The gradient of every position, kept or not, flat."""
    shape, s = ConvShape(*product.shape), product.shape
    gradient = poisoned(s[4] * (s[1] // s[13]) * s[5] * s[6], np.float32)
    grad, x = product.in_lines(shim, product.grad), product.in_lines(shim, product.x)
    room = workspace(shim, "fedsparse_cuda_dense_gradient_size", shape, product.dtype)
    shim("fedsparse_cuda_dense_gradient", shape, product.dtype, tf32, grad, x, gradient, room, None)
    return gradient


def topk_pruned(shim: Shim, product: Product, k: int, *, tf32: bool = False) -> tuple[NDArray, NDArray]:
    """Flat positions and gradients."""
    shape, nnz, column = ConvShape(*product.shape), len(product.values), product.column
    positions, gradients = poisoned(k, np.int64), poisoned(k, np.float32)
    grad, x = product.in_lines(shim, product.grad), product.in_lines(shim, product.x)
    room = workspace(shim, "fedsparse_cuda_topk_pruned_size", shape, product.dtype, nnz, k)
    shim(
        "fedsparse_cuda_topk_pruned", shape, product.dtype, tf32, nnz, product.row_start, column,
        column.dtype == np.int32, grad, x, k, positions, gradients, room, None,
    )  # fmt: skip
    return positions, gradients


def smallest(shim: Shim, layers: list[NDArray], counts: list[int]) -> list[NDArray]:
    """Numbers of the values of smallest magnitude of each layer."""
    layer_start, number_start = (np.cumsum([0, *sizes], dtype=np.int64) for sizes in (map(len, layers), counts))
    values, numbers = np.concatenate(layers), poisoned(int(number_start[-1]), np.int64)
    n = len(values)
    room = workspace(shim, "fedsparse_cuda_smallest_size", len(layers), n)
    shim("fedsparse_cuda_smallest", values, len(layers), n, layer_start, number_start, numbers, room, None)
    return np.split(numbers, number_start[1:-1])


class Packed(NamedTuple):
    """The largest elements of a tensor: a bit for each element, values before each group of 512, and the values."""

    bits: NDArray
    starts: NDArray
    values: NDArray


def pack_largest(shim: Shim, x: NDArray, dtype: int, k: int, value_dtype: int = FLOAT32, rows: int = 1) -> Packed:
    """The k largest of each of the rows of x, which is flat and as `as_stored` gives it."""
    n, groups, size = x.size, -(-x.size // 512), x.size // rows
    bits, starts = poisoned(16 * groups, np.uint32), poisoned(groups + 1, np.int32)
    room = workspace(shim, "fedsparse_cuda_mark_largest_size", rows, size)
    shim("fedsparse_cuda_mark_largest", x, rows, size, dtype, k, bits, starts, room, None)
    values = poisoned(int(starts[-1]), STORAGE[value_dtype])
    shim("fedsparse_cuda_pack", x, n, dtype, bits, starts, values, value_dtype, None)
    return Packed(bits, starts, values)


def unpack(shim: Shim, packed: Packed, n: int, dtype: int, value_dtype: int = FLOAT32) -> NDArray:
    """All n elements, as stored."""
    x = poisoned(n, STORAGE[dtype])
    shim("fedsparse_cuda_unpack", packed.values, value_dtype, n, packed.bits, packed.starts, x, dtype, None)
    return x


class _NewList(ctypes.Structure):
    """fedsparse::NewList."""

    _fields_ = [
        ("shape", ConvShape),
        ("backward", ctypes.c_bool),
        *((name, ctypes.c_int64) for name in ("dtype", "width")),
        *((name, ctypes.c_void_p) for name in ("row_start", "column")),
        ("wide", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("start", "offset", "value")),
    ]


class ListOf(NamedTuple):
    """A list to be made: a product's, of one direction, in strips of `width` or, at 0, of taps."""

    product: Product
    backward: bool
    width: int
    room: int = 0  # chunks of strips


def make_lists(shim: Shim, wanted: list[ListOf], *, with_values: bool = True) -> list[tuple[NDArray, NDArray, NDArray]]:
    """start, offset and value of any number of lists, made at once in arrays of exactly the sizes asked for.

    Forward lists of taps may go without values.
    """
    made = [_empty_list(shim, one, with_values=with_values) for one in wanted]
    tasks = new_lists(wanted, made)
    table = workspace(shim, "fedsparse_lists_table_size", len(wanted), tasks)
    there = poisoned(table.shape, np.int64)
    shim("fedsparse_lists_table", len(wanted), tasks, table, there)
    there[:] = table
    shim("fedsparse_cuda_lists", table, there, None)
    return made


def _empty_list(shim: Shim, wanted: ListOf, *, with_values: bool) -> tuple[NDArray, NDArray, NDArray]:
    product, backward, width, room = wanted
    shape, nnz = ConvShape(*product.shape), len(product.values)
    if width == 0:
        size = shim.value("fedsparse_csr16_start_size", shape, backward, product.dtype)
        valued = nnz if with_values or backward else 0
        return poisoned(size, np.int32), poisoned(nnz, np.uint16), poisoned(valued, np.int32)
    size = shim.value("fedsparse_block_start_size", shape, backward, product.dtype, width)
    return poisoned(size, np.int32), poisoned(room * 16, np.uint16), poisoned(room * 16 * width, np.int32)


def new_lists(wanted: list[ListOf], made: list[tuple[NDArray, NDArray, NDArray]] | None = None) -> ctypes.Array:
    """These as fedsparse::NewList; without arrays where none are given."""
    tasks = (_NewList * len(wanted))()
    for number, (task, (product, backward, width, _)) in enumerate(zip(tasks, wanted, strict=True)):
        task.shape, task.backward, task.dtype, task.width = ConvShape(*product.shape), backward, product.dtype, width
        task.row_start, task.column = product.row_start.ctypes.data, product.column.ctypes.data
        task.wide = product.column.dtype == np.int32
        if made is not None:
            task.start, task.offset, task.value = (a.ctypes.data if a.size else None for a in made[number])
    return tasks


def tap_list(shim: Shim, product: Product, backward: bool) -> tuple[NDArray, NDArray, NDArray]:
    """start, offset and value of a list, as `Product.list` makes them on the host."""
    return make_lists(shim, [ListOf(product, backward, 0)])[0]


def widest_strips(shim: Shim, *products: Product) -> NDArray:
    """How many neighbouring rows, and inputs, of each weight are alike, (products, 2): at most 32 of each."""
    weights = (WeightRows * len(products))()
    for number, product in enumerate(products):
        s = product.shape
        weights[number] = weight_rows((s[4], s[1] // s[13], s[5], s[6]), product.row_start, product.column)
    table = workspace(shim, "fedsparse_block_strips_table_size", len(products))
    shim.fill("fedsparse_block_strips_table", len(products), weights, table)
    there = table.copy()
    shim("fedsparse_cuda_block_strips", len(products), table, there, None)
    return there[: len(products)].view(np.int32).reshape(-1, 2)


def lines_of(shim: Shim, product: BlockProduct, backward: bool) -> ListOf:
    """A list in strips of the product's widths, with the room that its structure needs."""
    problem = ConvShape(*product.shape), backward, product.dtype, product.widths[backward]
    (alike,) = widest_strips(shim, product).tolist()
    room = shim.value("fedsparse_block_room", *problem, len(product.values), *alike)
    return ListOf(product, backward, problem[3], room)


def line_list(shim: Shim, product: BlockProduct, backward: bool) -> Lines:
    """That list by itself."""
    return Lines(*make_lists(shim, [lines_of(shim, product, backward)])[0])
