"""Lists of a pattern made where they are wanted, on a CUDA device say: only counts are read from there.

In plain PyTorch, for tensors of any device; what an exchange of positions needs is a kernel where those were built.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse._native import address, launch, row_list

__all__ = ["exchanged_rows", "first_of", "moved_words", "narrowest", "places", "rows_of_flat", "transposed"]

_NARROW = 1 << 16
_WORD = 0xFFFFFFFF


def narrowest(largest: int) -> torch.dtype:
    """Type of indices up to `largest`."""
    return torch.uint16 if largest < _NARROW else torch.int32


def rows_of_flat(shape: Sequence[int], flat: Tensor) -> tuple[Tensor, Tensor]:
    """`row_start` and `column` of ascending flat positions `(nnz,)` int64 of a dense shape, on their device."""
    rows, columns = shape[0], math.prod(shape[1:])
    return _starts(flat, rows, columns), (flat % columns).to(narrowest(columns - 1))


def transposed(shape: Sequence[int], row_start: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`column_start`, `entry` and `rank` of a row list, on its device."""
    rows, inputs, taps, device = shape[0], shape[1], math.prod(shape[2:]), column.device
    counts = row_start.diff().to(torch.int64)
    row = torch.repeat_interleave(torch.arange(rows, device=device), counts, output_size=column.numel())
    at = column.to(torch.int64)
    keys, order = ((at // taps * taps + at % taps) * rows + row).sort()
    rank = order - row_start.to(torch.int64)[row[order]]
    longest = int(counts.max())
    return (
        _starts(keys, inputs, taps * rows),
        (keys % (taps * rows)).to(narrowest(rows * taps - 1)),
        rank.to(narrowest(max(longest - 1, 0))),
    )


def places(old: Tensor, new: Tensor) -> Tensor:
    """For each of the ascending positions `new` its place among the ascending positions `old`, or -1: int32."""
    if old.numel() == 0:
        return torch.full_like(new, -1, dtype=torch.int32)
    found = torch.searchsorted(old, new).clamp(max=old.numel() - 1)
    return torch.where(old[found] == new, found, -1).to(torch.int32)


def first_of(kept: Tensor, flat: Tensor) -> int | None:
    """The lowest of ascending positions `flat` among the ascending positions `kept`, on one device, or None."""
    common = flat[places(kept, flat) >= 0]
    return int(common[0]) if common.numel() else None


def exchanged_rows(
    shape: Sequence[int], row_start: Tensor, column: Tensor, dropped: Tensor, grown: Tensor
) -> tuple[Tensor, Tensor]:
    """Row list without the values number `dropped` and with the flat positions `grown`, both int64 and ascending.

    All on one device, for which the CUDA kernels were built.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    new_start = torch.empty_like(row_start)
    new_column = column.new_empty(column.numel() - dropped.numel() + grown.numel())
    origins = new_start.new_empty(new_column.numel())
    launch(
        "cuda_exchange", column, rows, columns, row_list(row_start, column), address(dropped), dropped.numel(),
        address(grown), grown.numel(), address(new_start), address(new_column), address(origins),
    )  # fmt: skip
    return new_start, new_column


def moved_words(entries: Tensor, places: Tensor, grown: float) -> Tensor:
    """`entries[places]` with `grown` where a place is -1, for contiguous numbers of 4 bytes, as above."""
    taken = entries.new_empty(places.shape)
    fill = int(torch.tensor(grown, dtype=entries.dtype).view(torch.int32)) & _WORD
    move = address(entries), address(taken), fill
    launch("cuda_carry_words", entries, address(places), places.numel(), [move])
    return taken


def _starts(ascending: Tensor, lists: int, width: int) -> Tensor:
    """Number of ascending positions before each list, positions [i * width, (i + 1) * width) being list i."""
    bounds = torch.arange(lists + 1, device=ascending.device) * width
    return torch.searchsorted(ascending, bounds).to(torch.int32)
