"""The CUDA kernels, for numbers stored in 32 or 16 bits and summed in float32.

Weights in which 8, 16 or 32 neighbouring output channels keep the same columns, as in `vector:G` and `block:B`, are
multiplied on tensor cores (csrc/cuda/block.h), all others on ordinary ones (csrc/cuda/csr16.h). The gradients among
which `topk_pruned` chooses are computed on tensor cores, whatever the mask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, launch, row_list
from fedsparse.backends.base import Backend, Case, ChoosesLayout, Gradients, HandsListsOn
from fedsparse.backends.cuda_lists import Strips, Taps, build, has_room, problem_of, rewrite, sizes_of
from fedsparse.backends.layout import BATCH_INNERMOST, CONTIGUOUS, Layout
from fedsparse.backends.lists import Change, PatternLists
from fedsparse.backends.masked import MaskedBackend
from fedsparse.pattern import Pattern

__all__ = ["CudaBackend"]

_BATCH = 8  # samples of a line
_ALIGNMENT = 16  # bytes
_LIMIT = 1 << 27


@dataclass(frozen=True, eq=False)
class CudaBackend:
    """Gathers of lines of 8 samples from shared memory, on the caller's stream.

    Where 8 divides the batch, activations lie batch-innermost, and what lies so already is read where it is: between
    sparse layers nothing is converted. Of other batches every product fills lines up and returns contiguous tensors.

    Lists are built when a pattern is first met and live as long as its index tensors; where those are overwritten, so
    are the lists. Those of patterns that change together are made together.

    On tensor cores float32 operands keep their accuracy, in three TF32 products each, unless
    `torch.set_float32_matmul_precision` allows less than `"highest"`: then one product rounds them to 11 bits.
    """

    name = "cuda"
    _lists: PatternLists[Taps | Strips] = field(default_factory=PatternLists, repr=False)

    def refuse(self, case: Case) -> str | None:
        if case.device != "cuda":
            return f"cuda kernels read the memory of a CUDA device, the tensors are on {case.device}"
        if not _native.extension().built_with_cuda:
            return "fedsparse was built without CUDA; put nvcc on PATH, set FEDSPARSE_CUDA=on and build it again"
        if case.dtype not in STORED:
            return f"cuda kernels store float32, bfloat16 or float16, the tensors are {_short(case.dtype)}"
        if max(*case.input, *case.shape) >= _LIMIT:
            return f"sizes must stay below 2^27, got an input of shape {case.input}"
        native, sizes = _native.extension(), sizes_of(case)
        wanted, offered = native.csr16_shared_bytes(), native.cuda_shared_limit()
        if offered < wanted:
            return f"cuda kernels take {wanted >> 10} KiB of shared memory a block, the device has {offered >> 10}"
        if not all(native.csr16_start_size(sizes, backward, STORED[case.dtype]) for backward in (False, True)):
            return f"one channel of what a kernel of {case.shape[2:]} reaches does not fit in shared memory"
        return None

    def layout(self, case: Case) -> Layout:
        return CONTIGUOUS if case.input[0] % _BATCH else BATCH_INNERMOST

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        kept, sizes, dtype = self._list(pattern, case, backward=False), sizes_of(case), STORED[case.dtype]
        lines, y = _to_lines(x), _empty_lines(x, case.output)
        ends = address(lines), address(bias), address(y)
        if isinstance(kept, Strips):
            packed = values.new_empty(kept.value.numel())
            weight = kept.view, address(values), address(packed)
            launch("cuda_block_forward", x, sizes, dtype, _tf32(), *weight, *ends)
        else:
            launch("cuda_csr16_forward", x, sizes, dtype, kept.view, address(values), *ends)
        return _from_lines(y, case.output)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        slope, lines = _to_lines(grad), _to_lines(x) if want[1] else None
        grad_x = _empty_lines(slope, case.input) if want[0] else None
        grad_values = torch.empty_like(values) if want[1] else None
        kept = self._list(pattern, case, backward=False) if want[1] else None
        turned = self._list(pattern, case, backward=True) if want[0] else None
        if kept is None or turned is None or type(kept) is type(turned):
            _queue((kept, turned), (slope, lines, values), (grad_x, grad_values), case)
        else:  # strips may fit in shared memory in one direction only
            _queue((kept, None), (slope, lines, values), (None, grad_values), case)
            _queue((None, turned), (slope, None, values), (grad_x, None), case)
        return Gradients(None if grad_x is None else _from_lines(grad_x, case.input), grad_values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        native, sizes, dtype = _native.extension(), sizes_of(case), STORED[case.dtype]
        size = native.cuda_topk_pruned_size(sizes, dtype, case.nnz, k) if has_room() else 0
        if size == 0:  # shared memory too small for a block or for one channel of a slab, or 2^31 positions
            return MaskedBackend().topk_pruned(grad, x, pattern, k, case)
        slope, lines = _to_lines(grad), _to_lines(x)
        positions, gradients = (grad.new_empty(k, dtype=dtype) for dtype in (torch.int64, torch.float32))
        workspace = grad.new_empty(size, dtype=torch.uint8)
        launch(
            "cuda_topk_pruned", grad, sizes, dtype, _tf32(), case.nnz, row_list(pattern.row_start, pattern.column),
            address(slope), address(lines), k, address(positions), address(gradients), address(workspace),
        )  # fmt: skip
        return positions, gradients.to(grad.dtype)

    def _list(self, pattern: Pattern, case: Case, *, backward: bool) -> Taps | Strips:
        """The list of a pattern, built at the first call; batches of every size share it."""
        key = (pattern.shape, case.input[2:], case.geometry, case.dtype, backward)
        device, problem = pattern.column.device, problem_of(case, backward=backward)
        return self._lists.get(pattern, key, lambda p: build([([problem], p.to(device))])[0][0])

    def rewrite(self, changes: Sequence[Change]) -> list[bool]:
        held = [[*self._lists.of(change.column).values()] for change in changes]
        some = [(lists, new.to(column.device)) for lists, (column, new) in zip(held, changes, strict=True) if lists]
        answers = iter(rewrite(some))
        return [next(answers) if lists else True for lists in held]

    def hand_on(self, changes: Sequence[Change]) -> None:
        held = [(change, self._lists.of(change.column)) for change in changes]
        moved = [(change, lists) for change, lists in held if lists and not self._lists.of(change.pattern.column)]
        built = build([([one.problem for one in lists.values()], change.pattern) for change, lists in moved])
        for (change, lists), new in zip(moved, built, strict=True):
            self._lists.hand_on(change, dict(zip(lists, new, strict=True)))


def _queue(
    lists: tuple[Taps | Strips | None, Taps | Strips | None],
    operands: tuple[Tensor, Tensor | None, Tensor],
    results: tuple[Tensor | None, Tensor | None],
    case: Case,
) -> None:
    """Queues the kernels of gradients that are wanted.

    Args:
        lists: forward for the gradient of the values, backward for that of x; both of a kind, None what is not wanted.
        operands: lines of the output's gradient and, for the gradient of the values, of x; the values.
        results: the gradients of x and of the values, or None.
    """
    (kept, turned), (slope, lines, values) = lists, operands
    sizes, dtype = sizes_of(case), STORED[case.dtype]
    views = [None if one is None else one.view for one in lists]
    partial = slope.new_empty(0 if kept is None else kept.partial_size(sizes), dtype=torch.float32)
    ends = [address(tensor) for tensor in (slope, lines, partial, *results)]
    if isinstance(kept or turned, Strips):
        packed = values.new_empty(0 if turned is None else turned.value.numel())
        weight = *views, address(values), address(packed)
        launch("cuda_block_backward", slope, sizes, dtype, _tf32(), *weight, *ends)
    else:
        launch("cuda_csr16_backward", slope, sizes, dtype, case.nnz, *views, address(values), *ends)


def _tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


# ---- activations as the kernels take them: batch-innermost, or (ceil(batch / 8), ..., 8)
def _empty_lines(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    if shape[0] % _BATCH == 0:
        return BATCH_INNERMOST.empty(like, shape)
    return like.new_empty((-(-shape[0] // _BATCH), *shape[1:], _BATCH))


def _to_lines(x: Tensor) -> Tensor:
    if x.shape[0] % _BATCH == 0:
        lines = BATCH_INNERMOST.of(x)
        return lines.clone() if lines.data_ptr() % _ALIGNMENT else lines
    lines = _empty_lines(x, tuple(x.shape))
    size = math.prod(x.shape[1:])
    launch("cuda_to_lines", x, address(x), address(lines), x.shape[0], size, STORED[x.dtype])
    return lines


def _from_lines(lines: Tensor, shape: tuple[int, ...]) -> Tensor:
    if shape[0] % _BATCH == 0:
        return lines
    x = lines.new_empty(shape)
    size = math.prod(shape[1:])
    launch("cuda_from_lines", lines, address(lines), address(x), shape[0], size, STORED[x.dtype])
    return x


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_: type[Backend] = CudaBackend
__: type[ChoosesLayout] = CudaBackend
___: type[HandsListsOn] = CudaBackend
