"""Activations pruned, counted: ours by tile and over the whole batch, Triton's of short tiles, and torch's.

Instructions are those of the loops that nvcc 13.0 compiles for sm_90 (`cuobjdump -sass`), of Triton those that its
source asks for.
"""

from benchmarks.gpu.occupancy import CACHE_LATENCY, MEMORY_LATENCY, issued, starved, unevenly
from benchmarks.gpu.roofline import ELEMENT, H200, Work
from benchmarks.gpu.torch_work import passed, tiny, topk

__all__ = ["dense_pack", "pack_global", "pack_rows", "pack_short_rows"]

_UNDER_WAY = 256 * 4 * 16  # bytes that a block asks for at a time where it cuts a row: four pieces a thread
_DIGITS = {4: 3, 2: 2}  # by bytes of an element
_BIT, _VALUE, _INDEX = 1 / 8, 2, 8  # bytes: of an element's mark, of a value kept as bfloat16, of a position
# Instructions for each element: digit counted in a row, by bytes of an element, and in the whole, tie counted, element
# marked in rows and in the whole, packed.
_COUNTED_ROW = {4: 19.1, 2: 21.0}
_COUNTED, _TIE, _MARKED_ROW, _MARKED, _PACKED = 17.0, 19.5, 36.5, 23.0, 20.0
_ROUNDS, _OF_ROUND, _AROUND = 31, 3.0, 20.0  # of Triton's search, bit by bit: compared, counted, chosen


def pack_rows(rows: int, size: int, keep: float, precision: str) -> list[Work]:
    """The `tile` rule by CUDA (csrc/cuda/activation_rows.cu): a block reads its row once for each digit."""
    element = ELEMENT[precision]
    n, whole, digits = rows * size, float(rows * size * element), _DIGITS[ELEMENT[precision]]
    under_way = rows * _UNDER_WAY
    first = starved(whole, under_way, MEMORY_LATENCY, H200.cache)
    again = (digits - 1) * starved(whole, under_way, CACHE_LATENCY, H200.cache)
    cut = Work(
        issued(unevenly(digits * _COUNTED_ROW[element] * n, rows)), "fp32", 0.0, whole, first + again, by="cores"
    )
    return [cut, _read(n, element, _MARKED_ROW), *tiny(2), _packed(n, keep, element)]


def pack_global(n: int, keep: float, precision: str) -> list[Work]:
    """The `global` rule by CUDA: digits in two launches each, ties counted and summed, then marked and packed."""
    element = ELEMENT[precision]
    digits = [work for _ in range(_DIGITS[element]) for work in (_read(n, element, _COUNTED), *tiny(1))]
    ties = [_read(n, element, _TIE), *tiny(1)]
    return [*tiny(1), *digits, *ties, _read(n, element, _MARKED), *tiny(2), _packed(n, keep, element)]


def pack_short_rows(rows: int, size: int, keep: float, precision: str) -> list[Work]:
    """The `tile` rule by Triton, of rows that registers hold (kernels/activation_rows.py): read once, then marked."""
    element, n = ELEMENT[precision], rows * size
    cut = Work(issued(unevenly((_ROUNDS * _OF_ROUND + _AROUND) * n, rows)), "fp32", 0.0, float(n * element), by="cores")
    return [cut, _read(n, element, _MARKED_ROW), *tiny(3), _packed(n, keep, element)]  # a zero, two for the sum


def dense_pack(rows: int, size: int, keep: float, precision: str) -> list[Work]:
    """torch: magnitudes, `topk` of each row, unsorted, the elements found and their positions, kept as bfloat16."""
    element, n = ELEMENT[precision], rows * size
    kept = keep * n
    gathered = passed((_INDEX + 2 * element) * kept)
    return [passed(2 * element * n), *topk(rows, size, round(keep * size), element), gathered,
            passed((element + _VALUE) * kept)]  # fmt: skip


def _read(n: int, element: int, instructions: float) -> Work:
    """One kernel over all elements that writes little, a bit for each at most."""
    return Work(issued(instructions * n), "fp32", 0.0, n * (element + _BIT), by="cores")


def _packed(n: int, keep: float, element: int) -> Work:
    """Elements that stay are read with their neighbours: of every sector some are kept."""
    return Work(issued(_PACKED * n), "fp32", 0.0, n * (_BIT + element + _VALUE * keep), by="cores")
