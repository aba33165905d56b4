"""What the CUDA kernels read of patterns: strips for tensor cores where rows are alike, lists of taps elsewhere.

Lists of any number of patterns are made on the device together, in five launches at most. How many neighbouring rows,
and inputs, are alike is found there before, for all patterns in one launch, and the host reads the answers at once: a
pattern alone decides what lists it has, whichever it follows and whatever its granularity is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, check, launch, on_each_device, row_list, weight_rows
from fedsparse.backends.base import Case
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern

__all__ = [
    "Alike",
    "Problem",
    "Strips",
    "Table",
    "Taps",
    "alike",
    "build",
    "has_room",
    "problem_of",
    "rewrite",
    "sizes_of",
]

_CHUNK = 16  # lines
_NUMBERS = 8  # bytes of what the device finds out about a pattern

Sizes = tuple[int, ...]  # the 14 numbers of a convolution, in the order of ConvShape (csrc/include/fedsparse/shapes.h)


class Problem(NamedTuple):
    """What a list is for; it serves batches of every size.

    Attributes:
        sizes: of the convolution.
        backward: whether the input's gradient is wanted, or else the output.
        dtype: of the numbers, as in `_native.STORED`.
    """

    sizes: Sizes
    backward: bool
    dtype: int


class Taps(NamedTuple):
    """A list of taps on the device.

    Attributes:
        problem: what it is for.
        start: int32, first tap of each row and slab.
        offset: `(nnz,)` uint16, distance of each tap inside its slab.
        value: `(nnz,)` int32, which value each tap has.
    """

    problem: Problem
    start: Tensor
    offset: Tensor
    value: Tensor

    @property
    def form(self) -> "_Form":
        """What another list has in common with it where it fits in its place."""
        return _Form(0, self.offset.numel())

    @property
    def view(self) -> tuple[int, ...]:
        """As the kernels take it."""
        return address(self.start), address(self.offset), address(self.value)

    def partial_size(self, sizes: Sizes) -> int:
        """Floats of scratch for the gradient of the values, in a case of these sizes."""
        return int(_native.extension().csr16_partial_size(sizes, self.problem.dtype, self.offset.numel()))


class Strips(NamedTuple):
    """A list of lines that strips of channels keep, on the device.

    Attributes:
        problem: what it is for.
        width: channels of a strip, 8, 16 or 32.
        room: chunks of 16 lines that fit: enough for every pattern of this structure with as many weights.
        start: int32, first chunk of each strip and slab, then the number of chunks.
        offset: `(room * 16,)` uint16, distance of each line inside its slab.
        value: `(room * 16 * width,)` int32, which value each packed number has, or -1.
    """

    problem: Problem
    width: int
    room: int
    start: Tensor
    offset: Tensor
    value: Tensor

    @property
    def form(self) -> "_Form":
        """As of `Taps`."""
        return _Form(self.width, self.room)

    @property
    def view(self) -> tuple[int, ...]:
        """As the kernels take it."""
        return self.width, self.room, address(self.start), address(self.offset), address(self.value)

    def partial_size(self, sizes: Sizes) -> int:
        """As of `Taps`."""
        return int(_native.extension().block_partial_size(sizes, self.problem.dtype, self.width, self.room))


class Alike(NamedTuple):
    """Which strips a pattern has.

    Attributes:
        rows: how many neighbouring rows keep the same columns, 8, 16 or 32; less: no 8 of them.
        inputs: of how many neighbouring inputs all or none are kept, in each row and at each kernel position.
    """

    rows: int
    inputs: int


class _Form(NamedTuple):
    """What decides how large a list is: strips of this width (0: taps), and chunks of lines, or taps."""

    width: int
    room: int


# ---- which strips patterns have
def has_room() -> bool:
    """Whether the device can give a block of threads the shared memory that strips take."""
    native = _native.extension()
    return bool(native.cuda_shared_limit() >= native.block_shared_bytes())


def alike(patterns: Sequence[Pattern]) -> list[Alike]:
    """Which strips patterns have that lie on devices; the host waits for the answers, of each device once."""
    if patterns and not has_room():
        return [Alike(0, 0)] * len(patterns)
    return on_each_device(patterns, lambda pattern: pattern.column.device, _found)


def _found(patterns: Sequence[Pattern]) -> list[Alike]:
    """Of patterns on one device, in one launch."""
    native = _native.extension()
    views = [weight_rows(p.shape, p.row_start, p.column) for p in patterns]
    table = Table.empty(native.block_strips_table_size(len(views)), patterns[0].column.device)
    native.block_strips_table(views, address(table.host))
    table.send()
    launch("cuda_block_strips", table.device, len(views), address(table.host), address(table.device))
    widest = table.device[: _NUMBERS * len(views)].view(torch.int32).view(-1, 2)
    return [Alike(*pair) for pair in widest.tolist()]


# ---- lists of them
def build(wanted: Sequence[tuple[Sequence[Problem], Pattern]]) -> list[list[Taps | Strips]]:
    """Lists of patterns, which lie on devices, for the problems of each.

    Strips where the kept positions have a structure, else taps. Devices that cannot give a block the memory that strips
    take get taps.
    """
    strips = alike([pattern for _, pattern in wanted])
    made = [
        [_empty(problem, pattern, widest) for problem in problems]
        for (problems, pattern), widest in zip(wanted, strips, strict=True)
    ]
    _write([(one, pattern) for lists, (_, pattern) in zip(made, wanted, strict=True) for one in lists])
    return made


def rewrite(held: Sequence[tuple[Sequence[Taps | Strips], Pattern]]) -> list[bool]:
    """Writes lists anew, where they lie, for other patterns there: of each pattern all its lists, or none.

    Returns:
        Of each, whether its lists would be as large, and of the same kind, had they been built for this pattern.
    """
    strips = alike([pattern for _, pattern in held])
    fits = [
        all(one.form == _form(one.problem, pattern, widest) for one in lists)
        for (lists, pattern), widest in zip(held, strips, strict=True)
    ]
    _write([(one, pattern) for (lists, pattern), fit in zip(held, fits, strict=True) if fit for one in lists])
    return fits


def _write(jobs: Sequence[tuple[Taps | Strips, Pattern]]) -> None:
    """Fills lists with what these patterns make of them, of each device together."""

    def write(some: list[tuple[Taps | Strips, Pattern]]) -> list[None]:
        table = Table.of(some)
        table.send()
        table.queue()
        return [None] * len(some)

    on_each_device(jobs, lambda job: job[0].start.device, write)


@dataclass(frozen=True, eq=False)
class Table:
    """What a set of launches is to do.

    Attributes:
        host: `(bytes,)` uint8 in main memory.
        device: the same on the device.
        jobs: lists and patterns whose addresses are in it, which live as long.
    """

    host: Tensor
    device: Tensor
    jobs: Sequence[tuple[Taps | Strips, Pattern]] = ()

    @classmethod
    def empty(cls, size: int, device: torch.device, jobs: Sequence[tuple[Taps | Strips, Pattern]] = ()) -> "Table":
        """A table of `size` bytes, from pinned memory where that makes the copy one that nobody waits for."""
        host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        return cls(host, torch.empty(size, dtype=torch.uint8, device=device), jobs)

    @classmethod
    def of(cls, jobs: Sequence[tuple[Taps | Strips, Pattern]]) -> "Table":
        """One that fills lists, of these patterns; all lie on one device."""
        native = _native.extension()
        views = [
            (
                *one.problem, one.width if isinstance(one, Strips) else 0, row_list(pattern.row_start, pattern.column),
                tuple(map(address, (one.start, one.offset, one.value))),
            )
            for one, pattern in jobs
        ]  # fmt: skip
        table = cls.empty(native.lists_table_size(views), jobs[0][0].start.device, jobs)
        check("lists_table", native.lists_table(views, address(table.host), address(table.device)))
        return table

    def send(self) -> None:
        """Copies it to the device; the caching allocator keeps what the copy still reads.

        Raises:
            BackendError: a CUDA graph is being captured, which would read the table when that is gone.
        """
        if self.device.is_cuda and torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "lists of a pattern cannot be made while a CUDA graph is captured; warm the step up first"
            )
        self.device.copy_(self.host, non_blocking=True)

    def queue(self) -> None:
        """Queues the launches that fill the lists."""
        launch("cuda_lists", self.device, address(self.host), address(self.device))


def _form(problem: Problem, pattern: Pattern, widest: Alike) -> _Form:
    native = _native.extension()
    width = native.block_width(*problem, *widest)
    room = native.block_room(*problem, width, pattern.nnz, *widest) if width else pattern.nnz
    return _Form(width, room)


def _empty(problem: Problem, pattern: Pattern, widest: Alike) -> Taps | Strips:
    native, (width, room) = _native.extension(), _form(problem, pattern, widest)
    if width == 0:
        start = pattern.row_start.new_empty(native.csr16_start_size(*problem))
        return Taps(problem, start, start.new_empty(room, dtype=torch.uint16), start.new_empty(room))
    start = pattern.row_start.new_empty(native.block_start_size(*problem, width))
    lines = start.new_empty(room * _CHUNK, dtype=torch.uint16)
    return Strips(problem, width, room, start, lines, start.new_empty(room * _CHUNK * width))


# ---- problems
def problem_of(case: Case, *, backward: bool) -> Problem:
    """What a list has to serve in a case."""
    return Problem(sizes_of(case), backward, STORED[case.dtype])


def sizes_of(case: Case) -> Sizes:
    """The numbers of a case, a linear layer being a 1x1 convolution of one-pixel pictures."""
    if case.geometry is None:
        return case.input[0], case.shape[1], 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1
    g = case.geometry
    return *case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups
