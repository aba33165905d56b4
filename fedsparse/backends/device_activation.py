"""Pruned activations on a CUDA device: marked, packed and restored by the CUDA kernels, or by the Triton ones where the
extension was built without CUDA.

Both write the same: one bit for each element of the ordinary, contiguous tensor, the number of marked elements before
each group of 512, and the marked elements in order. Nothing waits for the device, so that a step may be captured in a
CUDA graph, but where everything is kept: then the number of non-zero elements is read, unless a graph is being
captured, which gives room to all. Of what a norm holds anyway only the bits are kept, and it is computed again.
"""

from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, launch
from fedsparse.backends import device_norms
from fedsparse.backends.device_norms import Norm
from fedsparse.backends.layout import CONTIGUOUS

__all__ = [
    "CUDA",
    "TRITON",
    "DevicePacked",
    "DeviceShared",
    "Kernels",
    "kernels_for",
    "pack",
    "recompute",
    "share",
    "unpack",
]

_LIMIT = 1 << 31  # elements: starts have 32 bits
_GROUP = 512  # elements, of 16 words


class DevicePacked(NamedTuple):
    """What is left of an ordinary tensor of n elements in groups of 512.

    Attributes:
        bits: `(16 * groups,)` int32; bit e % 32 of word e // 32 belongs to element e.
        starts: `(groups + 1,)` int32, marked elements before each group; the last is the number of all.
        values: marked elements in order; entries behind the last one hold nothing.
    """

    bits: Tensor
    starts: Tensor
    values: Tensor


class DeviceShared(NamedTuple):
    """What is left of the ReLU of a norm that holds its input anyway.

    Attributes:
        bits: as in `DevicePacked`.
        held, mean, rstd, weight, bias: the norm's.
    """

    bits: Tensor
    held: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Kernels(Protocol):
    """Who marks and moves. Tensors are contiguous and not empty; `bits` and `starts` as in `DevicePacked`."""

    def mark(self, x: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
        """Bits and starts of the k largest magnitudes of each of `rows` rows of x, zeros left out."""
        ...

    def pack(self, x: Tensor, bits: Tensor, starts: Tensor, values: Tensor) -> None:
        """Writes the marked elements to the first places of `values`."""
        ...

    def unpack(self, packed: DevicePacked, x: Tensor) -> None:
        """Writes all of x: values where marked, zeros elsewhere."""
        ...


class _Cuda:
    def mark(self, x: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
        size = x.numel() // rows
        bits, starts = _empty_map(x)
        workspace = x.new_empty(_native.extension().cuda_mark_largest_size(rows, size), dtype=torch.uint8)
        launch(
            "cuda_mark_largest", x, address(x), rows, size, STORED[x.dtype], k, address(bits), address(starts),
            address(workspace),
        )  # fmt: skip
        return bits, starts

    def pack(self, x: Tensor, bits: Tensor, starts: Tensor, values: Tensor) -> None:
        marked = address(bits), address(starts)
        launch("cuda_pack", x, address(x), x.numel(), STORED[x.dtype], *marked, address(values), STORED[values.dtype])

    def unpack(self, packed: DevicePacked, x: Tensor) -> None:
        values, marked = packed.values, (address(packed.bits), address(packed.starts))
        launch("cuda_unpack", x, address(values), STORED[values.dtype], x.numel(), *marked, address(x), STORED[x.dtype])


class _Triton:
    def mark(self, x: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
        bits, starts = _empty_map(x)
        _triton("mark")(x, rows, k, bits, starts)
        return bits, starts

    def pack(self, x: Tensor, bits: Tensor, starts: Tensor, values: Tensor) -> None:
        _triton("pack")(x, bits, starts, values)

    def unpack(self, packed: DevicePacked, x: Tensor) -> None:
        _triton("unpack")(*packed, x)


CUDA: Kernels = _Cuda()
TRITON: Kernels = _Triton()
_KERNELS = {"cuda": CUDA, "triton": TRITON}


def kernels_for(x: Tensor) -> Kernels | None:
    """Who prunes `x` where it is; None where neither can."""
    if x.dtype not in STORED or not 0 < x.numel() < _LIMIT:
        return None
    who = _native.kernels_at(x)
    return None if who is None else _KERNELS[who]


def pack(kernels: Kernels, x: Tensor, rows: int, k: int, dtype: torch.dtype) -> DevicePacked:
    """What is left of x when k elements of each of its `rows` rows are kept, stored as `dtype`."""
    x = CONTIGUOUS.of(x)
    bits, starts = kernels.mark(x, rows, k)
    room = rows * k
    if room == x.numel() and not torch.cuda.is_current_stream_capturing():
        room = int(starts[-1])
    values = x.new_empty(room, dtype=dtype)
    kernels.pack(x, bits, starts, values)
    return DevicePacked(bits, starts, values)


def unpack(packed: DevicePacked, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of `shape`, not empty, and `dtype`, zeros where nothing was kept."""
    x = packed.values.new_empty(prod(shape), dtype=dtype)
    kernels = kernels_for(x)
    assert kernels is not None  # it has packed a tensor like this one
    kernels.unpack(packed, x)
    return x.view(shape)


def share(kernels: Kernels, norm: Norm, rows: int, k: int, x: Tensor) -> DeviceShared:
    """What is left of `x = relu(norm)` when k elements of each of its `rows` rows are kept.

    Of a norm that holds its input rounded, k elements of what that is worth.
    """
    exact = norm.held.dtype == x.dtype
    bits, _ = kernels.mark(CONTIGUOUS.of(x if exact else _relu_of(norm, x.dtype)), rows, k)
    return DeviceShared(bits, *norm)


def recompute(shared: DeviceShared, dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype`, zeros where nothing was kept."""
    x = CONTIGUOUS.of(_relu_of(Norm(*shared[1:]), dtype))
    kernels = device_norms.kernels_for(x)
    assert kernels is not None  # it has computed the norm
    return kernels.gate(x, shared.bits)


def _relu_of(norm: Norm, dtype: torch.dtype) -> Tensor:
    kernels = device_norms.kernels_for(norm.held)
    assert kernels is not None
    return kernels.norm(norm, dtype, None, relu=True)


def _empty_map(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the bits and starts of a tensor."""
    groups = -(-x.numel() // _GROUP)
    return x.new_empty(groups * _GROUP // 32, dtype=torch.int32), x.new_empty(groups + 1, dtype=torch.int32)


def _triton(name: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] = getattr(import_module("fedsparse.kernels.activation_rows"), name)
    return kernel
