"""Lists of a pattern made where they are wanted, on a CUDA device say: only counts are read from there.

In plain PyTorch, for tensors of any device; where the CUDA kernels were built, `rebuilding` has faster ways.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["first_of", "narrowest", "places", "rows_of_flat", "transposed"]

_NARROW = 1 << 16


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


def _starts(ascending: Tensor, lists: int, width: int) -> Tensor:
    """Number of ascending positions before each list, positions [i * width, (i + 1) * width) being list i."""
    bounds = torch.arange(lists + 1, device=ascending.device) * width
    return torch.searchsorted(ascending, bounds).to(torch.int32)
