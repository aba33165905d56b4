"""Tensors as bytes.

Entries are taken as they lie in memory, which is little-endian on every platform supported here.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fedsparse.wire.buffer import Reader, Writer

__all__ = ["read_dtype", "read_entries", "read_tensor", "tensor_bytes", "write_dtype", "write_tensor"]

_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
_MOST_AXES = 16
_LARGEST_SPAN = 1 << 40  # product of a tensor's non-zero extents; keeps strides of empty tensors in range


def write_tensor(writer: Writer, tensor: Tensor) -> None:
    """Dtype, axes, extents and entries of a tensor."""
    write_dtype(writer, tensor)
    if tensor.ndim > _MOST_AXES or _span(tensor.shape) > _LARGEST_SPAN:
        raise writer.error(f"a tensor of shape {tuple(tensor.shape)} is too large to be sent")
    writer.byte(tensor.ndim)
    for extent in tensor.shape:
        writer.count(extent)
    writer.raw(tensor_bytes(tensor))


def read_tensor(reader: Reader) -> Tensor:
    """The next tensor."""
    dtype = read_dtype(reader)
    axes = reader.byte()
    if axes > _MOST_AXES:
        raise reader.error(f"a tensor with {axes} axes; at most {_MOST_AXES} are supported")
    shape = tuple(reader.count(_LARGEST_SPAN) for _ in range(axes))
    if _span(shape) > _LARGEST_SPAN:
        raise reader.error(f"a tensor of shape {shape} is too large")
    return read_entries(reader, shape, dtype)


def _span(shape: tuple[int, ...]) -> int:
    return math.prod(max(extent, 1) for extent in shape)


def write_dtype(writer: Writer, tensor: Tensor) -> None:
    """One byte for the dtype of a tensor."""
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        names = ", ".join(str(dtype) for dtype in _DTYPES)
        raise writer.error(f"a {tensor.layout} tensor of {tensor.dtype} cannot be sent; convert it to one of {names}")
    writer.byte(_DTYPES.index(tensor.dtype))


def read_dtype(reader: Reader) -> torch.dtype:
    """The next dtype."""
    code = reader.byte()
    if code >= len(_DTYPES):
        raise reader.error(f"unknown dtype {code}")
    return _DTYPES[code]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Entries of a tensor as bytes, in row order."""
    if tensor.numel() == 0:  # may have stride 0, which a view of another dtype refuses
        return memoryview(b"")
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


def read_entries(reader: Reader, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Tensor with its own memory, allocated only once its bytes are known to be there."""
    data = np.frombuffer(reader.raw(math.prod(shape) * dtype.itemsize), np.uint8)
    if dtype == torch.bool and data.size and data.max() > 1:
        raise reader.error("a bool tensor holds a byte that is neither 0 nor 1")
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = data
    return tensor
