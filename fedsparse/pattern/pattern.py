"""The kept positions of one weight, in the compact form that every backend reads.

A weight of shape `(out, in, *kernel)` is a matrix of `out` rows and `in * taps` columns, taps being the product of
the kernel's sizes. `values[i]` belongs to the i-th kept position in row order, which is the order of flat indices.
Two lists of the same positions are held, each as narrow as its largest entry allows (2 or 4 bytes):

* by row, for the forward product: `row_start` and `column`;
* by input, for the backward product: `column_start`, `entry` (tap * out + row) and `rank`, the place within the
  row, so that the value is number `row_start[row] + rank` and needs no 4-byte permutation.

That is 6 bytes per kept weight plus one 4-byte start per row and input (more only where a weight has over 65,536
columns, or rows times taps).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address, on_each_device
from fedsparse.errors import PatternError
from fedsparse.pattern import device_lists, rebuilding
from fedsparse.pattern.granularity import Element, Granularity, parse
from fedsparse.pattern.rebuilding import RowList

__all__ = ["Pattern", "carried", "exchange_all"]


def _check_shape(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    if len(shape) < 2 or size == 0:
        raise PatternError(f"a weight needs at least two non-empty axes (out, in, ...), got shape {shape}")
    if size >= 1 << 31:
        raise PatternError(f"a weight of {size} positions is too large; at most {(1 << 31) - 1} are supported")


def _starts(lists: int) -> Tensor:
    return torch.empty(lists + 1, dtype=torch.int32)


def _index(size: int, largest: int) -> Tensor:
    return torch.empty(size, dtype=device_lists.narrowest(largest))


@dataclass(frozen=True, eq=False)
class Pattern:
    """Immutable set of kept positions of one weight.

    Attributes:
        shape: dense shape, `(out, in)` or `(out, in / groups, kh, kw)`.
        row_start: `(out + 1,)` int32.
        column: `(nnz,)` uint16 or int32, ascending within a row.
        column_start: `(in + 1,)` int32.
        entry: `(nnz,)` uint16 or int32.
        rank: `(nnz,)` uint16 or int32.
        granularity: unit of pruning.
    """

    shape: tuple[int, ...]
    row_start: Tensor
    column: Tensor
    column_start: Tensor
    entry: Tensor
    rank: Tensor
    granularity: Granularity = Element()

    INDEX_NAMES: ClassVar[tuple[str, ...]] = ("row_start", "column", "column_start", "entry", "rank")

    # ---- making one
    @classmethod
    def from_index(
        cls, shape: Sequence[int], index: Sequence[Tensor], granularity: Granularity = Element()
    ) -> "Pattern":
        """Pattern of the five index tensors, in the order of `INDEX_NAMES`. The lists are trusted."""
        row_start, column, column_start, entry, rank = index
        return cls(tuple(shape), row_start, column, column_start, entry, rank, granularity)

    @classmethod
    def from_mask(
        cls, mask: Tensor, granularity: Granularity = Element(), *, device: torch.device | None = None
    ) -> "Pattern":
        """Pattern of the True positions of a bool mask of a weight's dense shape.

        Args:
            mask: on any device.
            granularity: unit of pruning.
            device: of the index tensors, main memory unless given. A mask that lies there is listed there.

        Raises:
            PatternError: the mask is not boolean, has fewer than two axes, is too large for int32 positions, or keeps
                a part of a unit.
        """
        if mask.dtype != torch.bool:
            raise PatternError(f"a mask must be a bool tensor, got {mask.dtype}; use `mask.bool()` or a comparison")
        _check_shape(tuple(mask.shape))
        if device is not None and device.type != "cpu":
            if mask.device != device:
                return cls.from_mask(mask, granularity).to(device)
            flat = mask.reshape(-1).nonzero().squeeze(1)
            granularity.check(mask.shape, flat)
            return cls.from_rows(tuple(mask.shape), *device_lists.rows_of_flat(mask.shape, flat), granularity)
        mask = mask.detach().cpu().contiguous()
        if not isinstance(granularity, Element):
            granularity.check(mask.shape, mask.view(-1).nonzero().squeeze(1))
        rows, columns = mask.shape[0], mask[0].numel()
        native, threads, row_start = _native.extension(), torch.get_num_threads(), _starts(rows)
        nnz = native.count_kept(address(mask), rows, columns, address(row_start), threads)
        column = _index(nnz, columns - 1)
        native.list_columns(
            address(mask), rows, columns, address(row_start), address(column), column.dtype == torch.int32, threads
        )
        return cls.from_rows(tuple(mask.shape), row_start, column, granularity)

    @classmethod
    def from_flat(cls, shape: tuple[int, ...], flat: Tensor, granularity: Granularity = Element()) -> "Pattern":
        """Pattern of ascending, distinct flat positions `(nnz,)` of a weight of dense shape `shape`.

        Raises:
            PatternError: positions out of order, repeated or out of range, or a part of a unit.
        """
        _check_shape(shape)
        size = math.prod(shape)
        flat = flat.detach().cpu().to(torch.int64).contiguous()
        columns, row_start = size // shape[0], _starts(shape[0])
        column = _index(flat.numel(), columns - 1)
        lists = (address(row_start), address(column), column.dtype == torch.int32)
        if not _native.extension().list_flat(address(flat), flat.numel(), shape[0], columns, *lists):
            raise PatternError(
                f"positions must ascend without repetition inside [0, {size}) for a weight of shape {shape}"
            )
        granularity.check(shape, flat)
        return cls.from_rows(tuple(shape), row_start, column, granularity)

    @classmethod
    def from_rows(
        cls, shape: tuple[int, ...], row_start: Tensor, column: Tensor, granularity: Granularity
    ) -> "Pattern":
        """Pattern from its row list alone; the transposed list is derived, where that lies. The lists are trusted."""
        if _native.on_device(column):
            (lists,) = rebuilding.by_input([RowList(shape, row_start, column)])
            return cls.from_index(shape, (row_start, column, *lists), granularity)
        if column.device.type != "cpu":
            lists = device_lists.transposed(shape, row_start, column)
            return cls.from_index(shape, (row_start, column, *lists), granularity)
        rows, inputs, taps = shape[0], shape[1], math.prod(shape[2:])
        longest = int((row_start[1:] - row_start[:-1]).max())
        column_start, threads = _starts(inputs), torch.get_num_threads()
        entry, rank = _index(column.numel(), rows * taps - 1), _index(column.numel(), max(longest - 1, 0))
        pattern = cls(tuple(shape), row_start, column, column_start, entry, rank, granularity)
        scratch = torch.empty(threads * inputs * taps, dtype=torch.int32)
        _native.extension().transpose_pattern(
            pattern.view,
            address(column_start),
            address(entry),
            entry.dtype == torch.int32,
            address(rank),
            rank.dtype == torch.int32,
            address(scratch),
            threads,
        )
        return pattern

    def exchanged(self, dropped: Tensor, grown: Tensor) -> "Pattern":
        """Pattern without the values number `dropped` `(d,)` and with the flat positions `grown` `(g,)`.

        Both are int64 and ascend without repetition; grown positions are not kept. This is trusted. The new pattern
        lies where this one does; both lists are moved there if need be. See `exchange_all`.
        """
        return exchange_all([(self, dropped, grown)])[0]

    def _exchanged(self, dropped: Tensor, grown: Tensor) -> "Pattern":
        """In main memory."""
        home = self.column.device
        dropped, grown = dropped.cpu().contiguous(), grown.cpu().contiguous()
        old, row_start = self.to("cpu"), _starts(self.shape[0])
        column = old.column.new_empty(self.nnz - dropped.numel() + grown.numel())
        _native.extension().exchange(
            old.view,
            address(dropped),
            dropped.numel(),
            address(grown),
            grown.numel(),
            address(row_start),
            address(column),
            torch.get_num_threads(),
        )
        return Pattern.from_rows(self.shape, row_start, column, self.granularity).to(home)

    def first_kept(self, flat: Tensor) -> int | None:
        """The lowest of ascending, distinct flat positions `(n,)` int64 that this pattern keeps, or None."""
        if flat.device.type != "cpu":
            return device_lists.first_of(self.to(flat.device).flat, flat)
        arguments = (address(flat), flat.numel(), torch.get_num_threads())
        lowest: int = _native.extension().first_kept(self.to("cpu").view, *arguments)
        return None if lowest < 0 else lowest

    # ---- sizes
    @property
    def nnz(self) -> int:
        """Number of kept positions."""
        return self.column.numel()

    @property
    def size(self) -> int:
        """Number of positions, kept or not."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept share, in [0, 1]."""
        return self.nnz / self.size

    @property
    def index(self) -> tuple[Tensor, ...]:
        """The five index tensors, in the order of `INDEX_NAMES`."""
        return self.row_start, self.column, self.column_start, self.entry, self.rank

    @property
    def row_list(self) -> RowList:
        """The list by row alone."""
        return RowList(self.shape, self.row_start, self.column)

    @property
    def nbytes(self) -> int:
        """Bytes of all index tensors."""
        return sum(t.numel() * t.element_size() for t in self.index)

    @cached_property
    def view(self) -> object:
        """The pattern as the compiled kernels see it; valid while this object lives."""
        sizes = (self.shape[0], self.shape[1], math.prod(self.shape[2:]), self.nnz)
        wide = (
            self.column.dtype == torch.int32,
            self.entry.dtype == torch.int32,
            self.rank.dtype == torch.int32,
        )
        return _native.extension().PatternView(sizes, tuple(t.data_ptr() for t in self.index), wide)

    @cached_property
    def digest(self) -> str:
        """Hash of shape, granularity and positions: equal patterns have equal digests. 32 hex digits."""
        state = hashlib.blake2b(f"{self.shape} {self.granularity}".encode(), digest_size=16)
        state.update(self.row_start.cpu().numpy().tobytes())
        state.update(self.column.cpu().numpy().tobytes())
        return state.hexdigest()

    def __deepcopy__(self, memo: dict[int, object]) -> "Pattern":
        return self  # immutable

    def __reduce__(self) -> tuple[object, ...]:
        # The row list as numpy arrays: torch cannot unpickle uint16, and the transposed list follows from it.
        lists = self.row_start.cpu().numpy(), self.column.cpu().numpy()
        return _unpickled, (self.shape, *lists, str(self.granularity), str(self.column.device))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    # ---- positions
    @property
    def rows(self) -> Tensor:
        """Row of each kept position, `(nnz,)` int64."""
        counts = (self.row_start[1:] - self.row_start[:-1]).to(torch.int64)
        return torch.repeat_interleave(torch.arange(self.shape[0], device=counts.device), counts, output_size=self.nnz)

    @property
    def flat(self) -> Tensor:
        """Flat position of each kept weight, `(nnz,)` int64, ascending."""
        return self.rows * (self.size // self.shape[0]) + self.column.to(torch.int64)

    def mask(self) -> Tensor:
        """Bool mask of the dense shape; True is kept."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.column.device)
        mask[self.flat] = True
        return mask.view(self.shape)

    def gather(self, dense: Tensor) -> Tensor:
        """Entries of a dense tensor at the kept positions, `(nnz,)`."""
        if tuple(dense.shape) != self.shape:
            raise PatternError(
                f"a pattern of shape {self.shape} cannot gather from a tensor of shape {tuple(dense.shape)}"
            )
        if self.nnz == self.size:
            return dense.reshape(-1).clone()
        if _is_plain_words(dense):
            values, dense = dense.new_empty(self.nnz), dense.contiguous()
            _native.extension().gather_words(self.view, dense.data_ptr(), values.data_ptr())
            return values
        return dense.reshape(-1)[self.flat]

    def scatter(self, values: Tensor) -> Tensor:
        """Dense tensor with `values` `(nnz,)` at the kept positions and 0 elsewhere."""
        if values.shape != (self.nnz,):
            raise PatternError(
                f"a pattern with {self.nnz} kept positions cannot scatter values of shape {tuple(values.shape)}"
            )
        if self.nnz == self.size:
            return values.view(self.shape).clone()
        if _is_plain_words(values):
            dense, values = values.new_empty(self.shape), values.contiguous()
            _native.extension().scatter_words(self.view, values.data_ptr(), dense.data_ptr())
            return dense
        dense = values.new_zeros(self.size)
        dense[self.flat] = values
        return dense.view(self.shape)

    def carry_to(self, new: "Pattern") -> Tensor:
        """For each position kept by `new`, its index among this pattern's values, or -1: `(new.nnz,)` int32."""
        if new.shape != self.shape:
            raise PatternError(f"values cannot move from a weight of shape {self.shape} to one of shape {new.shape}")
        home = self.column.device
        if _native.on_device(self.column):
            return rebuilding.places(self.row_list, new.to(home).row_list)
        if home.type != "cpu":
            return device_lists.places(self.flat, new.to(home).flat)
        places = torch.empty(new.nnz, dtype=torch.int32)
        _native.extension().carry(self.view, new.to("cpu").view, address(places), torch.get_num_threads())
        return places

    def moved(self, values: Tensor, new: "Pattern", *, grown: float = 0.0) -> Tensor:
        """`values` carried over to pattern `new`; positions that only `new` keeps get `grown`."""
        return carried(values, self.carry_to(new), grown)

    def to(self, device: torch.device | str) -> "Pattern":
        """This pattern with its index tensors on `device`; itself when they already are."""
        if self.column.device == torch.device(device):
            return self
        return Pattern.from_index(self.shape, [t.to(device) for t in self.index], self.granularity)


def _unpickled(
    shape: tuple[int, ...], row_start: NDArray[np.int32], column: NDArray[np.generic], granularity: str, device: str
) -> Pattern:
    lists = torch.from_numpy(row_start), torch.from_numpy(column)
    return Pattern.from_rows(shape, *lists, parse(granularity)).to(device)


def _is_plain_words(tensor: Tensor) -> bool:
    """Whether the compiled loops may copy it: 4-byte numbers in main memory that no gradient flows through."""
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.device.type == "cpu" and tensor.element_size() == 4 and not tracked


def exchange_all(changes: Sequence[tuple[Pattern, Tensor, Tensor]]) -> list[Pattern]:
    """`Pattern.exchanged` of several weights, with what each drops and grows: on a CUDA device in two launches for all.

    A launch serves 40 weights.
    """
    return on_each_device(changes, lambda change: change[0].column.device, _exchanged)


def _exchanged(changes: Sequence[tuple[Pattern, Tensor, Tensor]]) -> list[Pattern]:
    """Of weights whose patterns lie on one device."""
    first, home = changes[0][0], changes[0][0].column.device
    if not _native.on_device(first.column):
        return [pattern._exchanged(dropped, grown) for pattern, dropped, grown in changes]
    rows = rebuilding.exchanged(
        [(p.row_list, dropped.to(home).contiguous(), grown.to(home).contiguous()) for p, dropped, grown in changes]
    )
    return [
        Pattern.from_index(now.shape, (now.row_start, now.column, *lists), pattern.granularity)
        for (pattern, _, _), now, lists in zip(changes, rows, rebuilding.by_input(rows), strict=True)
    ]


def carried(entries: Tensor, places: Tensor, grown: float) -> Tensor:
    """`entries[places]`, with `grown` where a place is -1 (see `Pattern.carry_to`)."""
    if entries.numel() == 0:
        return entries.new_full(places.shape, grown)
    if _is_plain_words(entries) and places.device.type == "cpu":
        taken, fill, entries = entries.new_empty(places.shape), entries.new_tensor(grown), entries.contiguous()
        sizes = (places.numel(), address(fill), address(taken), torch.get_num_threads())
        _native.extension().carry_words(address(entries), address(places), *sizes)
        return taken
    places = places.to(entries.device, torch.int64)
    return torch.where(places >= 0, entries[places.clamp(min=0)], entries.new_tensor(grown))
