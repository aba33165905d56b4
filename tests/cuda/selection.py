"""Calls selection kernels on the shim as a backend does on a device. Needs numpy, not torch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.cuda.block_products import BlockProduct, Lines
from tests.cuda.products import FLOAT32, STORAGE, ConvShape, Product, poisoned
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


class Rebuilt(NamedTuple):
    """Rows of a changed pattern, and where its values come from."""

    row_start: NDArray
    column: NDArray
    places: NDArray


def exchange(
    shim: Shim, row_start: NDArray, column: NDArray, columns: int, dropped: NDArray, grown: NDArray
) -> Rebuilt:
    """Rows without the values number `dropped` and with the flat positions `grown`."""
    nnz, wide = len(column) - len(dropped) + len(grown), column.dtype == np.int32
    new = Rebuilt(poisoned(len(row_start), np.int32), poisoned(nnz, column.dtype.type), poisoned(nnz, np.int32))
    shim(
        "fedsparse_cuda_exchange", len(row_start) - 1, columns, row_start, column, wide, dropped, len(dropped), grown,
        len(grown), *new, None,
    )  # fmt: skip
    return new


def carry(shim: Shim, places: NDArray, arrays: list[NDArray], fills: list[float]) -> list[NDArray]:
    """Arrays of float32 moved to `places`."""
    moved = [poisoned(len(places), np.float32) for _ in arrays]
    sources, targets = (np.array([a.ctypes.data for a in side], np.uint64) for side in (arrays, moved))
    words = np.array(fills, np.float32)
    shim("fedsparse_cuda_carry_words", places, len(places), len(arrays), sources, targets, words, None)
    return moved


def tap_list(shim: Shim, product: Product, backward: bool) -> tuple[NDArray, NDArray, NDArray]:
    """start, offset and value of a list, as `Product.list` makes them on the host."""
    shape, nnz = ConvShape(*product.shape), len(product.values)
    size = shim.value("fedsparse_csr16_start_size", shape, backward, product.dtype)
    start, offset, value = poisoned(size, np.int32), poisoned(nnz, np.uint16), poisoned(nnz, np.int32)
    room, wide = workspace(shim, "fedsparse_cuda_csr16_list_size", nnz), product.column.dtype == np.int32
    shim(
        "fedsparse_cuda_csr16_list", shape, backward, product.dtype, nnz, product.row_start, product.column, wide,
        start, offset, value if backward else None, room, None,
    )  # fmt: skip
    return start, offset, value


def widest_strips(shim: Shim, product: Product) -> NDArray:
    """How many neighbouring rows, and inputs, of the weight are alike: at most 32 of each."""
    s, widest, wide = product.shape, np.full(2, 32, np.int32), product.column.dtype == np.int32
    shim(
        "fedsparse_cuda_block_strips", s[4], s[1] // s[13], s[5] * s[6], product.row_start, product.column, wide,
        widest, None,
    )  # fmt: skip
    return widest


def line_list(shim: Shim, product: BlockProduct, backward: bool) -> Lines:
    """A list in strips of the product's widths, in arrays of exactly the sizes asked for."""
    problem = ConvShape(*product.shape), backward, product.dtype, product.widths[backward]
    alike = widest_strips(shim, product).tolist()
    room = shim.value("fedsparse_block_room", *problem, len(product.values), *alike)
    lines = Lines(
        poisoned(shim.value("fedsparse_block_start_size", *problem), np.int32),
        poisoned(room * 16, np.uint16),
        poisoned(room * 16 * problem[3], np.int32),
    )
    wide = product.column.dtype == np.int32
    shim("fedsparse_cuda_block_list", *problem, product.row_start, product.column, wide, *lines, None)
    return lines
