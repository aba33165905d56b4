"""The largest gradients of pruned weights, counted: ours, which never has the dense gradient, and torch's.

Instructions are those of the loops that nvcc 13.0 compiles for sm_90 (`cuobjdump -sass`).
"""

from benchmarks.gpu.occupancy import issued, unevenly
from benchmarks.gpu.roofline import ELEMENT, Work, dense_work, sizes_of
from benchmarks.gpu.torch_work import passed, tiny, topk
from fedsparse.bench.cases import LayerCase

__all__ = ["dense_regrow", "regrow"]

# csrc/cuda/dense_gradient.cuh
_TILE, _DEPTH, _THREADS = 32, 32, 256  # positions along a side, terms of a step, threads of a block
_FULL_DEVICE, _SHORTEST = 264, 512  # blocks that are wanted, terms that a run has at least
_OF_PICTURES, _OF_ROWS = 360, 389  # instructions of a thread and step, of which 128 multiply
_READ, _STAGED = 2.0, 0.25  # bytes of shared memory for each multiply-add: 32 for 16, and what a step stages
# csrc/cuda/topk.cu
_SAMPLED = 16  # of so many tiles, one
_MAGNITUDE = 31  # bits
_DIGIT, _SORTED = 11, 8  # bits of a digit that is searched, and that is sorted
_MASK, _INDEX = 1, 8  # bytes
_LISTED, _ENTRY, _FOUND = 2, 8, 12  # entries for each position wanted; bytes of an entry and of a position found


def regrow(case: LayerCase, k: int, precision: str) -> list[Work]:
    """One layer's search for k positions, launch for launch; that the sample's bound holds is taken for granted.

    Activations, which lie batch-innermost, are turned first. What is listed, about 2 k entries, is sorted.
    """
    listed = passed(2 * _LISTED * _ENTRY * k)
    bits = _MAGNITUDE + (sizes_of(case)[2] - 1).bit_length()
    digits, passes = -(-bits // _DIGIT), -(-bits // _SORTED)
    tiles = _tiles(case)
    sample = _gradients(case, precision, -(-tiles // _SAMPLED))
    repairs = 2 * digits + 1  # of the bound, which end at once
    turns = [passed(2 * ELEMENT[precision] * size) for size in sizes_of(case)[:2]]
    search = [*tiny(1), sample, *tiny(1), _gradients(case, precision, tiles), *tiny(repairs)]
    return [*turns, *search, *[listed] * (2 * passes), passed((_ENTRY + _FOUND) * k)]


def dense_regrow(case: LayerCase, k: int, precision: str) -> list[Work]:
    """Dense gradient of the weight; zeros at kept positions; magnitudes; `topk`, unsorted; the gradients found."""
    size, element = sizes_of(case)[2], ELEMENT[precision]
    masked, magnitudes = passed((2 * element + _MASK) * size), passed(2 * element * size)
    found = passed((_INDEX + 2 * element) * k)
    return [*dense_work(case, "grad_w", precision), masked, magnitudes, *topk(1, size, k, element), found]


def _tiles(case: LayerCase) -> int:
    return -(-case.outputs // _TILE) * -(-(case.inputs * _taps(case)) // _TILE)


def _taps(case: LayerCase) -> int:
    return 1 if case.size is None else case.kernel**2


def _gradients(case: LayerCase, precision: str, tiles: int) -> Work:
    """Some tiles of the dense gradient, on ordinary cores."""
    depth, element = case.batch * case.places, ELEMENT[precision]
    runs = min(-(-_FULL_DEVICE // _tiles(case)), max(depth // _SHORTEST, 1))
    blocks = tiles * runs
    steps = tiles * (depth / _DEPTH)
    each = _OF_PICTURES if case.places > 1 else _OF_ROWS
    products = steps * _DEPTH * _TILE**2
    # Of 32 columns in a row, the taps of a channel meet in the first-level cache.
    lines = _TILE + min(_TILE, -(-(_TILE - 1) // _taps(case)) + 1)
    sums = 2 * 4 * blocks * _TILE**2 if runs > 1 else 0
    inputs, outputs, _ = sizes_of(case)
    return Work(
        issued(unevenly(steps * _THREADS * each, blocks)), "fp32", unevenly(products * (_READ + _STAGED), blocks),
        float(element * (inputs + outputs) + sums), float(element * depth * tiles * lines), by="cores",
    )  # fmt: skip
