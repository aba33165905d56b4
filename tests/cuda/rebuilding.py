"""Calls the kernels that change patterns on the shim, for many weights at once. Needs numpy, not torch."""

import ctypes
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.cuda.products import poisoned
from tests.cuda.shim import Shim


class WeightRows(ctypes.Structure):
    """fedsparse::WeightRows."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "taps")),
        ("row_start", ctypes.c_void_p),
        ("column", ctypes.c_void_p),
        ("wide", ctypes.c_bool),
    ]


class _Exchange(ctypes.Structure):
    """fedsparse::Exchange."""

    _fields_ = [
        ("old", WeightRows),
        *((name, ctypes.c_void_p) for name in ("dropped", "grown")),
        *((name, ctypes.c_int64) for name in ("drops", "grows")),
        *((name, ctypes.c_void_p) for name in ("row_start", "column")),
    ]


class _InputList(ctypes.Structure):
    """fedsparse::InputList."""

    _fields_ = [
        ("rows", WeightRows),
        *((name, ctypes.c_void_p) for name in ("column_start", "entry", "rank")),
        *((name, ctypes.c_bool) for name in ("wide_entry", "wide_rank")),
    ]


class _Move(ctypes.Structure):
    """fedsparse::Move."""

    _fields_ = [
        ("old", WeightRows),
        ("now", WeightRows),
        ("places", ctypes.c_void_p),
        ("arrays", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("origins", "targets", "fill")),
    ]


class _Growth(ctypes.Structure):
    """fedsparse::Growth."""

    _fields_ = [("rows", WeightRows), ("positions", ctypes.c_void_p), ("count", ctypes.c_int64)]


class Weight(NamedTuple):
    """Dense shape and rows of a weight."""

    shape: tuple[int, ...]
    row_start: NDArray
    column: NDArray


class InputList(NamedTuple):
    """Kept positions by input."""

    column_start: NDArray
    entry: NDArray
    rank: NDArray


def weight_rows(shape: Sequence[int], row_start: NDArray, column: NDArray) -> WeightRows:
    addresses = row_start.ctypes.data, column.ctypes.data
    return WeightRows(shape[0], shape[1], prod(shape[2:]), *addresses, column.dtype == np.int32)


def exchange(shim: Shim, changes: Sequence[tuple[Weight, NDArray, NDArray]]) -> list[Weight]:
    """Rows of each weight without the values number `dropped` and with the flat positions `grown`."""
    tasks, new = (_Exchange * len(changes))(), []
    for number, (old, dropped, grown) in enumerate(changes):
        nnz, kind = len(old.column) - len(dropped) + len(grown), old.column.dtype.type
        new.append(Weight(old.shape, poisoned(len(old.row_start), np.int32), poisoned(nnz, kind)))
        lists = dropped.ctypes.data, grown.ctypes.data, len(dropped), len(grown)
        there = (array.ctypes.data for array in new[-1][1:])
        tasks[number] = _Exchange(weight_rows(*old), *lists, *there)
    shim("fedsparse_cuda_exchange", len(changes), tasks, None)
    return new


def list_by_input(shim: Shim, weights: Sequence[Weight]) -> list[InputList]:
    """Entries and ranks as narrow as they may be."""
    tasks, made = (_InputList * len(weights))(), []
    for number, weight in enumerate(weights):
        shape, nnz = weight.shape, len(weight.column)
        longest = max(int(np.diff(weight.row_start).max()), 1)
        kinds = [np.uint16 if most < 1 << 16 else np.int32 for most in (shape[0] * prod(shape[2:]) - 1, longest - 1)]
        made.append(InputList(poisoned(shape[1] + 1, np.int32), *(poisoned(nnz, kind) for kind in kinds)))
        addresses = (array.ctypes.data for array in made[-1])
        tasks[number] = _InputList(weight_rows(*weight), *addresses, *(kind is np.int32 for kind in kinds))
    shim("fedsparse_cuda_list_by_input", len(weights), tasks, None)
    return made


class Moved(NamedTuple):
    """Places of a weight's values, if asked for, and its arrays."""

    places: NDArray | None
    arrays: list[NDArray]


Array = tuple[NDArray, float]  # of float32, and what a grown number begins with


def carry(shim: Shim, moves: Sequence[tuple[Weight, Weight, Sequence[Array], bool]]) -> list[Moved]:
    """Arrays of each weight, whose old and new rows are given, and the places of its values where they are wanted."""
    tasks, made, held = (_Move * len(moves))(), [], []
    for number, (old, now, arrays, wanted) in enumerate(moves):
        nnz = len(now.column)
        made.append(Moved(poisoned(nnz, np.int32) if wanted else None, [poisoned(nnz, np.float32) for _ in arrays]))
        sides = [array for array, _ in arrays], made[-1].arrays
        tables = [np.array([array.ctypes.data for array in side], np.uint64) for side in sides]
        tables.append(np.array([fill for _, fill in arrays], np.float32))
        held.append(tables)
        places = made[-1].places.ctypes.data if wanted else None
        tasks[number] = _Move(
            weight_rows(*old), weight_rows(*now), places, len(arrays), *(table.ctypes.data for table in tables)
        )
    shim("fedsparse_cuda_carry_words", len(moves), tasks, None)
    return made


def check_growth(shim: Shim, growths: Sequence[tuple[Weight, NDArray]]) -> NDArray:
    """What is wrong with positions that are to be grown in each weight."""
    tasks, faults = (_Growth * len(growths))(), np.zeros(len(growths), np.int32)
    for number, (weight, positions) in enumerate(growths):
        tasks[number] = _Growth(weight_rows(*weight), positions.ctypes.data, len(positions))
    shim("fedsparse_cuda_check_growth", len(growths), tasks, faults, None)
    return faults
