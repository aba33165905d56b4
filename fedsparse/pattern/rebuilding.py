"""Patterns of any number of weights changed by the CUDA kernels, which weights of one call share.

All tensors of a call lie on one device, for which the kernels were built. A launch serves 40 weights, 26 where arrays
are moved; none of them is waited for, unless said otherwise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsparse._native import address, launch, weight_rows
from fedsparse.pattern.device_lists import narrowest

__all__ = [
    "KEPT",
    "NOT_RISING",
    "OUTSIDE",
    "WORDS",
    "Array",
    "Carry",
    "RowList",
    "by_input",
    "carried",
    "exchanged",
    "faults",
    "places",
]

# What may be wrong with positions to be grown, as in csrc/cuda/rebuild.cu.
OUTSIDE, NOT_RISING, KEPT = 1, 2, 4
# Numbers that are moved, and how a grown one is written.
WORDS = {torch.float32: np.float32, torch.int32: np.int32}

Array = tuple[Tensor, float]  # `(nnz,)` contiguous, of a type in `WORDS`, and what a grown number begins with


class RowList(NamedTuple):
    """Rows of one weight, as of `Pattern`."""

    shape: tuple[int, ...]
    row_start: Tensor
    column: Tensor

    @property
    def view(self) -> tuple[object, ...]:
        """What the extension takes."""
        return weight_rows(self.shape, self.row_start, self.column)


class Carry(NamedTuple):
    """A weight whose rows have changed, and arrays that follow."""

    old: RowList
    now: RowList
    arrays: Sequence[Array] = ()


def exchanged(changes: Sequence[tuple[RowList, Tensor, Tensor]]) -> list[RowList]:
    """Rows without the values number `dropped` and with the flat positions `grown`, of each weight.

    Both are int64, contiguous and ascend without repetition; grown positions are not kept.
    """
    new, views = [], []
    for old, dropped, grown in changes:
        column = old.column.new_empty(old.column.numel() - dropped.numel() + grown.numel())
        now = RowList(old.shape, torch.empty_like(old.row_start), column)
        lists = (address(dropped), dropped.numel()), (address(grown), grown.numel())
        views.append((old.view, *lists, (address(now.row_start), address(now.column))))
        new.append(now)
    launch("cuda_exchange", changes[0][0].column, views)
    return new


def by_input(weights: Sequence[RowList]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`column_start`, `entry` and `rank` of each weight; the host waits if one has more than 65,536 columns."""
    lists = [_empty_list(*pair) for pair in zip(weights, _longest(weights), strict=True)]
    views = [
        (rows.view, address(start), *((address(index), index.dtype == torch.int32) for index in (entry, rank)))
        for rows, (start, entry, rank) in zip(weights, lists, strict=True)
    ]
    launch("cuda_list_by_input", weights[0].column, views)
    return lists


def _longest(weights: Sequence[RowList]) -> list[int]:
    """No less than the entries of each weight's longest row, and as many where that decides how ranks are stored."""
    bounds = [math.prod(rows.shape[1:]) for rows in weights]
    wide = [i for i, bound in enumerate(bounds) if narrowest(bound - 1) == torch.int32]
    found = torch.stack([weights[i].row_start.diff().max() for i in wide]).tolist() if wide else []
    for i, longest in zip(wide, found, strict=True):
        bounds[i] = longest
    return bounds


def _empty_list(rows: RowList, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    outputs, inputs, taps, nnz = rows.shape[0], rows.shape[1], math.prod(rows.shape[2:]), rows.column.numel()
    entry = rows.column.new_empty(nnz, dtype=narrowest(outputs * taps - 1))
    rank = rows.column.new_empty(nnz, dtype=narrowest(max(longest - 1, 0)))
    return rows.row_start.new_empty(inputs + 1), entry, rank


def carried(moves: Sequence[Carry]) -> list[list[Tensor]]:
    """The arrays of each weight in the order of its new positions."""
    taken = [[entries.new_empty(move.now.column.shape) for entries, _ in move.arrays] for move in moves]
    _carry(moves, [0] * len(moves), taken)
    return taken


def places(old: RowList, now: RowList) -> Tensor:
    """For each new position of a weight its place among the old ones, or -1: `(nnz,)` int32."""
    found = now.row_start.new_empty(now.column.shape)
    _carry([Carry(old, now)], [address(found)], [[]])
    return found


def _carry(moves: Sequence[Carry], found: Sequence[int], taken: Sequence[Sequence[Tensor]]) -> None:
    views = []
    for move, there, moved in zip(moves, found, taken, strict=True):
        arrays = [
            (address(entries), address(new), _bits(entries.dtype, grown))
            for (entries, grown), new in zip(move.arrays, moved, strict=True)
        ]
        views.append((move.old.view, move.now.view, there, arrays))
    launch("cuda_carry_words", moves[0].now.column, views)


def _bits(dtype: torch.dtype, number: float) -> int:
    return int.from_bytes(np.array(number, WORDS[dtype]).tobytes(), "little")


def faults(growths: Sequence[tuple[RowList, Tensor]]) -> list[int]:
    """What is wrong with flat positions, contiguous int64, that are to be grown in each weight: 0, or a sum.

    The host waits for the answer, once. With `OUTSIDE` the rest is void.
    """
    found = growths[0][0].row_start.new_zeros(len(growths))
    views = [(rows.view, (address(positions), positions.numel())) for rows, positions in growths]
    launch("cuda_check_growth", found, views, address(found))
    numbers: list[int] = found.tolist()
    return numbers
