"""What belongs to patterns of several weights, asked for and moved together: on a CUDA device in a launch for all."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fedsparse import _native
from fedsparse._native import on_each_device
from fedsparse.errors import PatternError
from fedsparse.pattern import rebuilding
from fedsparse.pattern.pattern import Pattern, carried
from fedsparse.pattern.rebuilding import Array

__all__ = ["Move", "carry_all", "growth_faults"]


class Move(NamedTuple):
    """A weight that changes its pattern, and what follows.

    Attributes:
        old, new: patterns of one dense shape, on one device.
        arrays: `(old.nnz,)` each, and what a grown number of it begins with.
    """

    old: Pattern
    new: Pattern
    arrays: Sequence[Array]


def carry_all(moves: Sequence[Move]) -> list[list[Tensor]]:
    """The arrays of each weight in the order of its new pattern, `(new.nnz,)` each.

    Raises:
        PatternError: two patterns have different shapes.
    """
    for old, new, _ in moves:
        if old.shape != new.shape:
            raise PatternError(f"values cannot move from a weight of shape {old.shape} to one of shape {new.shape}")
    together = [move for move in moves if _of_words(move)]
    found = iter(on_each_device(together, lambda move: move.new.column.device, _by_kernel))
    return [next(found) if _of_words(move) else _one_by_one(move) for move in moves]


def _of_words(move: Move) -> bool:
    """Whether the kernels move all of it."""
    home = move.new.column.device
    return _native.on_device(move.new.column) and all(
        entries.device == home and entries.dtype in rebuilding.WORDS for entries, _ in move.arrays
    )


def _by_kernel(moves: Sequence[Move]) -> list[list[Tensor]]:
    """Of weights on one device."""
    return rebuilding.carried(
        [
            rebuilding.Carry(old.row_list, new.row_list, [(entries.contiguous(), grown) for entries, grown in arrays])
            for old, new, arrays in moves
        ]
    )


def _one_by_one(move: Move) -> list[Tensor]:
    places = move.old.carry_to(move.new)
    return [carried(entries, places, grown) for entries, grown in move.arrays]


def growth_faults(growths: Sequence[tuple[Pattern, Tensor]]) -> list[int | None]:
    """What is wrong with flat positions `(n,)` int64 that are to be grown in each weight, as `rebuilding.faults` says.

    The host waits for the answers of each CUDA device once. None where no kernel looks: in main memory say.
    """
    return on_each_device(growths, lambda growth: growth[0].column.device, _faults)


def _faults(growths: Sequence[tuple[Pattern, Tensor]]) -> Sequence[int | None]:
    if not _native.on_device(growths[0][0].column):
        return [None] * len(growths)
    return rebuilding.faults([(pattern.row_list, positions.contiguous()) for pattern, positions in growths])
