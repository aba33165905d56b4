"""The CUDA kernels for unstructured weights: stored in 32 or 16 bits, summed in float32 (csrc/cuda/csr16.h)."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedsparse import _native
from fedsparse._native import address
from fedsparse.backends.base import Backend, Case, Gradients
from fedsparse.backends.masked import MaskedBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern

__all__ = ["CudaBackend", "Taps"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/cuda/cuda_api.h
_BATCH = 8  # samples of a line
_LIMIT = 1 << 27

Sizes = tuple[int, ...]  # the 14 numbers of a convolution, in the order of ConvShape (csrc/include/fedsparse/shapes.h)


class Taps(NamedTuple):
    """A list of taps on the device.

    Attributes:
        start: int32, first tap of each row and slab.
        offset: `(nnz,)` uint16, distance of each tap inside its slab.
        value: `(nnz,)` int32, which value each tap has.
    """

    start: Tensor
    offset: Tensor
    value: Tensor


class Kept(NamedTuple):
    """A list and what it was built for."""

    case: Case
    backward: bool
    taps: Taps


@dataclass(frozen=True, eq=False)
class CudaBackend:
    """Gathers of batch-innermost lines from shared memory, on the caller's stream.

    Lists of taps are built on the host when a pattern is first met and live as long as its index tensors; where those
    are overwritten, so are the lists.
    """

    name = "cuda"
    _lists: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False)

    def refuse(self, case: Case) -> str | None:
        if case.device != "cuda":
            return f"cuda kernels read the memory of a CUDA device, the tensors are on {case.device}"
        if not _native.extension().built_with_cuda:
            return "fedsparse was built without CUDA; put nvcc on PATH, set FEDSPARSE_CUDA=on and build it again"
        if case.dtype not in _DTYPES:
            return f"cuda kernels store float32, bfloat16 or float16, the tensors are {_short(case.dtype)}"
        if max(*case.input, *case.shape) >= _LIMIT:
            return f"sizes must stay below 2^27, got an input of shape {case.input}"
        native, sizes = _native.extension(), _sizes(case)
        if not all(native.csr16_start_size(sizes, backward, _DTYPES[case.dtype]) for backward in (False, True)):
            return f"one channel of what a kernel of {case.shape[2:]} reaches does not fit in shared memory"
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        taps = self._taps(pattern, case, backward=False)
        lines, y = _to_lines(x), _empty_lines(x, case.output)
        _call(
            "cuda_csr16_forward", x, _sizes(case), _DTYPES[case.dtype], address(taps.start), address(taps.offset),
            address(values), address(lines), address(bias), address(y),
        )  # fmt: skip
        return _from_lines(y, case.output)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        slope = _to_lines(grad)
        grad_x = self._grad_x(slope, values, pattern, case) if want[0] else None
        grad_values = self._grad_values(slope, x, values, pattern, case) if want[1] else None
        return Gradients(grad_x, grad_values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        # Dense products of a chunk of rows at a time are what tensor cores are for.
        return MaskedBackend().topk_pruned(grad, x, pattern, k, case)

    def _grad_x(self, slope: Tensor, values: Tensor, pattern: Pattern, case: Case) -> Tensor:
        taps, grad_x = self._taps(pattern, case, backward=True), _empty_lines(slope, case.input)
        _call(
            "cuda_csr16_grad_x", slope, _sizes(case), _DTYPES[case.dtype], address(taps.start), address(taps.offset),
            address(taps.value), address(values), address(slope), address(grad_x),
        )  # fmt: skip
        return _from_lines(grad_x, case.input)

    def _grad_values(self, slope: Tensor, x: Tensor, values: Tensor, pattern: Pattern, case: Case) -> Tensor:
        taps, lines, grad_values = self._taps(pattern, case, backward=False), _to_lines(x), torch.empty_like(values)
        sizes, dtype = _sizes(case), _DTYPES[case.dtype]
        partial = slope.new_empty(_native.extension().csr16_partial_size(sizes, dtype, case.nnz), dtype=torch.float32)
        _call(
            "cuda_csr16_grad_values", slope, sizes, dtype, case.nnz, address(taps.start), address(taps.offset),
            address(slope), address(lines), address(partial), address(grad_values),
        )  # fmt: skip
        return grad_values

    def _taps(self, pattern: Pattern, case: Case, *, backward: bool) -> Taps:
        """The list of a pattern, built at the first call; batches of every size share it."""
        lists: dict[tuple[object, ...], Kept] = self._lists.setdefault(pattern.column, {})
        key = (pattern.shape, case.input[2:], case.geometry, case.dtype, backward)
        if key not in lists:
            lists[key] = Kept(case, backward, _build(pattern, case, backward))
        return lists[key].taps

    def rewrite(self, column: Tensor, pattern: Pattern) -> None:
        kept: Kept
        for kept in self._lists.get(column, {}).values():
            for old, new in zip(kept.taps, _build(pattern, kept.case, kept.backward), strict=True):
                old.copy_(new)


def _build(pattern: Pattern, case: Case, backward: bool) -> Taps:
    native, sizes, dtype = _native.extension(), _sizes(case), _DTYPES[case.dtype]
    start = torch.empty(native.csr16_start_size(sizes, backward, dtype), dtype=torch.int32)
    offset, value = torch.empty(pattern.nnz, dtype=torch.uint16), torch.empty(pattern.nnz, dtype=torch.int32)
    host = pattern.to("cpu")
    status = native.csr16_list(sizes, backward, dtype, host.view, address(start), address(offset), address(value))
    _check("csr16_list", status)
    return Taps(*(index.to(pattern.column.device) for index in (start, offset, value)))


def _sizes(case: Case) -> Sizes:
    if case.geometry is None:
        return case.input[0], case.shape[1], 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1
    g = case.geometry
    return *case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups


# ---- (batch, ...) and (ceil(batch / 8), ..., 8)
def _empty_lines(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_empty((-(-shape[0] // _BATCH), *shape[1:], _BATCH))


def _to_lines(x: Tensor) -> Tensor:
    lines = _empty_lines(x, tuple(x.shape))
    size = math.prod(x.shape[1:])
    _call("cuda_to_lines", x, address(x), address(lines), x.shape[0], size, _DTYPES[x.dtype])
    return lines


def _from_lines(lines: Tensor, shape: tuple[int, ...]) -> Tensor:
    x = lines.new_empty(shape)
    size = math.prod(shape[1:])
    _call("cuda_from_lines", lines, address(lines), address(x), shape[0], size, _DTYPES[x.dtype])
    return x


# ---- the extension
def _call(name: str, where: Tensor, *arguments: object) -> None:
    """Queues a kernel on the current stream of a tensor's device."""
    with torch.cuda.device_of(where):
        _check(name, getattr(_native.extension(), name)(*arguments, _stream(where)))


def _stream(where: Tensor) -> int:
    return torch.cuda.current_stream(where.device).cuda_stream


def _check(name: str, status: int) -> None:
    if status != 0:
        raise BackendError(f"{name} failed with status {status}: {_native.extension().cuda_status_text(status)}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_: type[Backend] = CudaBackend
