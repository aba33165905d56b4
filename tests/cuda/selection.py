"""Calls selection kernels on the shim as a backend does on a device. Needs numpy, not torch."""

import numpy as np
from numpy.typing import NDArray

from tests.cuda.products import ConvShape, Product, poisoned
from tests.cuda.shim import Shim


def workspace(shim: Shim, name: str, *arguments: object) -> NDArray:
    """What the function `name` asks for, holding nothing; of exactly that size."""
    size = shim.value(name, *arguments)
    assert size > 0
    return poisoned(size // 8, np.int64)


def dense_gradient(shim: Shim, product: Product) -> NDArray:
    """The gradient of every position, kept or not, flat."""
    shape, s = ConvShape(*product.shape), product.shape
    gradient = poisoned(s[4] * (s[1] // s[13]) * s[5] * s[6], np.float32)
    room = workspace(shim, "fedsparse_cuda_dense_gradient_size", shape)
    shim("fedsparse_cuda_dense_gradient", shape, product.dtype, product.grad, product.x, gradient, room, None)
    return gradient


def topk_pruned(shim: Shim, product: Product, k: int) -> tuple[NDArray, NDArray]:
    """Flat positions and gradients."""
    shape, nnz, column = ConvShape(*product.shape), len(product.values), product.column
    positions, gradients = poisoned(k, np.int64), poisoned(k, np.float32)
    room = workspace(shim, "fedsparse_cuda_topk_pruned_size", shape, nnz, k)
    shim(
        "fedsparse_cuda_topk_pruned", shape, product.dtype, nnz, product.row_start, column, column.dtype == np.int32,
        product.grad, product.x, k, positions, gradients, room, None,
    )  # fmt: skip
    return positions, gradients
