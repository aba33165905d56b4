"""The smallest weights dropped, patterns made anew and lists of them, counted: ours and what a dense network does.

Launches are those of our kernels. What Python asks torch for around them is said in `CALLS` and not part of the counts.
"""

from collections.abc import Sequence

from benchmarks.gpu.occupancy import issued
from benchmarks.gpu.roofline import Work
from benchmarks.gpu.torch_work import passed, tiny, topk

__all__ = ["CALLS", "dense_prune", "lists", "prune", "rebuild"]

# Calls of torch that do something, and waits for the device among them, of all 19 layers of ResNet-18 together:
# `swap_all` and what carries values and momentum (tests/nn/test_moves.py counts them).
CALLS = {"element": (17, 2), "block:16": (178, 7)}

_BY_INPUT = 2  # numbers of 16 bits of each weight
_WEIGHT, _COLUMN, _PLACE, _POSITION, _MASK = 4, 2, 4, 8, 1  # bytes
# csrc/cuda/threshold.cuh and prune.cu: instructions for each value, by cuobjdump (nvcc 13.0, sm_90).
_DIGITS = 3
_COUNTED, _COMPARED, _LISTED = 16.0, 17.5, 38.0
_DIRECTIONS = 2
_ARRAYS = 2  # that follow the pattern: values and momentum


def prune(kept: int) -> list[Work]:
    """The smallest of `kept` weights of all layers: a launch begins, a digit takes two, then counts, sums and lists."""

    def read(instructions: float) -> Work:
        return Work(issued(instructions * kept), "fp32", 0.0, float(_WEIGHT * kept), by="cores")

    digits = [work for _ in range(_DIGITS) for work in (read(_COUNTED), *tiny(1))]
    return [*tiny(1), *digits, read(_COMPARED), *tiny(1), read(_COMPARED + _LISTED)]


def rebuild(kept: Sequence[int], share: float) -> list[Work]:
    """Rows of all layers, up to 26, without the `share` dropped and with as many grown, their lists by input, and what
    belongs to the values moved: a launch each. Lists by input read columns twice, to mark and to place them."""
    count = sum(kept)
    merged = passed(2 * _COLUMN * count + 2 * _POSITION * share * count)
    return [merged, passed((2 + _BY_INPUT) * _COLUMN * count), passed(2 * (_COLUMN + _ARRAYS * _WEIGHT) * count)]


def lists(kept: Sequence[int]) -> list[Work]:
    """Strips that products read of the patterns, of all layers and directions together: columns are read to find the
    strips, to count and to list lines; counts are added up; a place for each value is written."""
    columns, places = float(_COLUMN * sum(kept)), float(_PLACE * sum(kept))
    both = _DIRECTIONS * columns
    return [passed(columns), passed(both), *tiny(1), passed(both + _DIRECTIONS * places)]


def dense_prune(sizes: Sequence[int], density: float, share: float) -> list[Work]:
    """Of each dense layer: magnitudes, pruned ones out of the way, `topk`, the mask off and on, weights and momentum
    multiplied by it. Which positions grow is known on both sides."""
    return [work for size in sizes for work in _dense(size, round(density * share * size))]


def _dense(size: int, swapped: int) -> list[Work]:
    magnitudes, hidden = passed(2 * _WEIGHT * size), passed((2 * _WEIGHT + _MASK) * size)
    turned = [passed(2 * _MASK * size), passed((_POSITION + _MASK) * swapped)] * 2  # a copy, and what changes of it
    masked = passed((2 * _WEIGHT + _MASK) * size)
    return [magnitudes, hidden, *topk(1, size, swapped, _WEIGHT), *turned, *[masked] * _ARRAYS]
