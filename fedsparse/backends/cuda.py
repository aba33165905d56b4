"""The CUDA kernels, for numbers stored in 32 or 16 bits and summed in float32.

Weights in which 8, 16 or 32 neighbouring output channels keep the same columns, as in `vector:G` and `block:B`, are
multiplied on tensor cores (csrc/cuda/block.h), all others on ordinary ones (csrc/cuda/csr16.h).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, check, launch, row_list
from fedsparse.backends.base import Backend, Case, Gradients
from fedsparse.backends.lists import PatternLists
from fedsparse.backends.masked import MaskedBackend
from fedsparse.pattern import Pattern

__all__ = ["CudaBackend", "Strips", "Taps"]

_BATCH = 8  # samples of a line
_CHUNK = 16  # lines
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


class Strips(NamedTuple):
    """A list of lines that strips of channels keep, on the device.

    Attributes:
        width: channels of a strip, 8, 16 or 32.
        chunks: of 16 lines.
        start: int32, first chunk of each strip and slab.
        offset: `(chunks * 16,)` uint16, distance of each line inside its slab.
        value: `(chunks * 16 * width,)` int32, which value each packed number has, or -1.
    """

    width: int
    chunks: int
    start: Tensor
    offset: Tensor
    value: Tensor


@dataclass(frozen=True, eq=False)
class CudaBackend:
    """Gathers of batch-innermost lines from shared memory, on the caller's stream.

    Lists are built on the host when a pattern is first met and live as long as its index tensors; where those are
    overwritten, so are the lists.

    On tensor cores float32 operands keep their accuracy, in three TF32 products each, unless
    `torch.set_float32_matmul_precision` allows less than `"highest"`: then one product rounds them to 11 bits.
    """

    name = "cuda"
    _lists: PatternLists = field(default_factory=PatternLists, repr=False)

    def refuse(self, case: Case) -> str | None:
        if case.device != "cuda":
            return f"cuda kernels read the memory of a CUDA device, the tensors are on {case.device}"
        if not _native.extension().built_with_cuda:
            return "fedsparse was built without CUDA; put nvcc on PATH, set FEDSPARSE_CUDA=on and build it again"
        if case.dtype not in STORED:
            return f"cuda kernels store float32, bfloat16 or float16, the tensors are {_short(case.dtype)}"
        if max(*case.input, *case.shape) >= _LIMIT:
            return f"sizes must stay below 2^27, got an input of shape {case.input}"
        native, sizes = _native.extension(), _sizes(case)
        if not all(native.csr16_start_size(sizes, backward, STORED[case.dtype]) for backward in (False, True)):
            return f"one channel of what a kernel of {case.shape[2:]} reaches does not fit in shared memory"
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        kept, sizes, dtype = self._list(pattern, case, backward=False), _sizes(case), STORED[case.dtype]
        lines, y = _to_lines(x), _empty_lines(x, case.output)
        index, numbers = (address(kept.start), address(kept.offset)), (address(lines), address(bias), address(y))
        if isinstance(kept, Strips):
            packed = _packed(kept, values)
            launch("cuda_block_forward", x, sizes, dtype, kept.width, _tf32(), *index, address(packed), *numbers)
        else:
            launch("cuda_csr16_forward", x, sizes, dtype, *index, address(values), *numbers)
        return _from_lines(y, case.output)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        slope = _to_lines(grad)
        grad_x = self._grad_x(slope, values, pattern, case) if want[0] else None
        grad_values = self._grad_values(slope, x, values, pattern, case) if want[1] else None
        return Gradients(grad_x, grad_values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        native, sizes = _native.extension(), _sizes(case)
        size = native.cuda_topk_pruned_size(sizes, case.nnz, k)
        if size == 0:  # 2^31 positions, terms of a sum or elements of an image
            return MaskedBackend().topk_pruned(grad, x, pattern, k, case)
        positions, gradients = (grad.new_empty(k, dtype=dtype) for dtype in (torch.int64, torch.float32))
        workspace = grad.new_empty(size, dtype=torch.uint8)
        launch(
            "cuda_topk_pruned", grad, sizes, STORED[case.dtype], case.nnz,
            row_list(pattern.row_start, pattern.column), address(grad), address(x), k, address(positions),
            address(gradients), address(workspace),
        )  # fmt: skip
        return positions, gradients.to(grad.dtype)

    def _grad_x(self, slope: Tensor, values: Tensor, pattern: Pattern, case: Case) -> Tensor:
        kept, sizes, dtype = self._list(pattern, case, backward=True), _sizes(case), STORED[case.dtype]
        grad_x = _empty_lines(slope, case.input)
        index, numbers = (address(kept.start), address(kept.offset)), (address(slope), address(grad_x))
        if isinstance(kept, Strips):
            packed = _packed(kept, values)
            launch("cuda_block_grad_x", slope, sizes, dtype, kept.width, _tf32(), *index, address(packed), *numbers)
        else:
            launch("cuda_csr16_grad_x", slope, sizes, dtype, *index, address(kept.value), address(values), *numbers)
        return _from_lines(grad_x, case.input)

    def _grad_values(self, slope: Tensor, x: Tensor, values: Tensor, pattern: Pattern, case: Case) -> Tensor:
        kept, lines, grad_values = self._list(pattern, case, backward=False), _to_lines(x), torch.empty_like(values)
        native, sizes, dtype = _native.extension(), _sizes(case), STORED[case.dtype]
        index, operands = (address(kept.start), address(kept.offset)), (address(slope), address(lines))
        if isinstance(kept, Strips):
            size = native.block_partial_size(sizes, dtype, kept.width, kept.chunks)
            partial = slope.new_empty(size, dtype=torch.float32)
            launch(
                "cuda_block_grad_values", slope, sizes, dtype, kept.width, _tf32(), kept.chunks, *index,
                address(kept.value), *operands, address(partial), address(grad_values),
            )  # fmt: skip
        else:
            partial = slope.new_empty(native.csr16_partial_size(sizes, dtype, case.nnz), dtype=torch.float32)
            launch(
                "cuda_csr16_grad_values", slope, sizes, dtype, case.nnz, *index, *operands, address(partial),
                address(grad_values),
            )  # fmt: skip
        return grad_values

    def _list(self, pattern: Pattern, case: Case, *, backward: bool) -> "Taps | Strips":
        """The list of a pattern, built at the first call; batches of every size share it."""
        key = (pattern.shape, case.input[2:], case.geometry, case.dtype, backward)
        device = pattern.column.device
        return self._lists.get(pattern, key, lambda p: _build(p, case, backward, device))

    def rewrite(self, column: Tensor, pattern: Pattern) -> bool:
        return self._lists.rewrite(column, pattern)


def _build(pattern: Pattern, case: Case, backward: bool, device: torch.device) -> Taps | Strips:
    """Strips where the kept positions have a structure, whatever the pattern's granularity is called; else taps."""
    host = pattern.to("cpu")
    width = _native.extension().block_width(_sizes(case), backward, STORED[case.dtype], host.view)
    return _strips(host, case, backward, width, device) if width else _taps(host, case, backward, device)


def _taps(host: Pattern, case: Case, backward: bool, device: torch.device) -> Taps:
    native, sizes, dtype = _native.extension(), _sizes(case), STORED[case.dtype]
    start = torch.empty(native.csr16_start_size(sizes, backward, dtype), dtype=torch.int32)
    offset, value = torch.empty(host.nnz, dtype=torch.uint16), torch.empty(host.nnz, dtype=torch.int32)
    status = native.csr16_list(sizes, backward, dtype, host.view, address(start), address(offset), address(value))
    check("csr16_list", status)
    return Taps(*(index.to(device) for index in (start, offset, value)))


def _strips(host: Pattern, case: Case, backward: bool, width: int, device: torch.device) -> Strips:
    native, problem = _native.extension(), (_sizes(case), backward, STORED[case.dtype], width)
    start = torch.empty(native.block_start_size(*problem), dtype=torch.int32)
    check("block_start", native.block_start(*problem, host.view, address(start)))
    chunks = int(start[-1])
    offset = torch.empty(chunks * _CHUNK, dtype=torch.uint16)
    value = torch.empty(chunks * _CHUNK * width, dtype=torch.int32)
    status = native.block_list(*problem, host.view, address(start), address(offset), address(value))
    check("block_list", status)
    return Strips(width, chunks, *(index.to(device) for index in (start, offset, value)))


def _packed(strips: Strips, values: Tensor) -> Tensor:
    """The values in the order in which tensor cores take them."""
    packed = values.new_empty(len(strips.value))
    dtype = STORED[values.dtype]
    launch("cuda_block_pack", values, dtype, len(packed), address(strips.value), address(values), address(packed))
    return packed


def _tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


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
    launch("cuda_to_lines", x, address(x), address(lines), x.shape[0], size, STORED[x.dtype])
    return lines


def _from_lines(lines: Tensor, shape: tuple[int, ...]) -> Tensor:
    x = lines.new_empty(shape)
    size = math.prod(shape[1:])
    launch("cuda_from_lines", lines, address(lines), address(x), shape[0], size, STORED[x.dtype])
    return x


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_: type[Backend] = CudaBackend
