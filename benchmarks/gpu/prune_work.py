"""The smallest weights dropped, patterns made anew and lists of them, counted: ours and what a dense network does.

Launches are those of our kernels. What Python asks torch for around them is said in `CALLS` and not part of the counts.
"""

from collections.abc import Sequence

from benchmarks.gpu.occupancy import issued
from benchmarks.gpu.roofline import Work
from benchmarks.gpu.torch_work import passed, tiny, topk

__all__ = ["CALLS", "dense_prune", "lists", "prune", "rebuild"]

# Calls of torch that do something, and waits for the device among them, of a layer: `swap_all` and what carries values
# and momentum. Of blocks all but the exchange itself are torch's.
CALLS = {"element": (19, 7), "block:16": (118, 11)}

_WEIGHT, _COLUMN, _PLACE, _POSITION, _MASK = 4, 2, 4, 8, 1  # bytes
# csrc/cuda/threshold.cuh and prune.cu: instructions for each value, by cuobjdump (nvcc 13.0, sm_90).
_DIGITS = 3
_COUNTED, _COMPARED, _LISTED = 16.0, 17.5, 38.0
_LAUNCHES_OF_A_SET = 5  # strips filled in, found, counted, added up, listed
_DIRECTIONS = 2
_ARRAYS = 2  # that follow the pattern: values and momentum


def prune(kept: int) -> list[Work]:
    """The smallest of `kept` weights of all layers: a launch begins, a digit takes two, then counts, sums and lists."""

    def read(instructions: float) -> Work:
        return Work(issued(instructions * kept), "fp32", 0.0, float(_WEIGHT * kept), by="cores")

    digits = [work for _ in range(_DIGITS) for work in (read(_COUNTED), *tiny(1))]
    return [*tiny(1), *digits, read(_COMPARED), *tiny(1), read(_COMPARED + _LISTED)]


def rebuild(kept: Sequence[int], share: float) -> list[Work]:
    """Rows of each layer without the `share` dropped and with as many grown, and what belongs to the values moved."""
    return [work for count in kept for work in _rebuilt(count, share)]


def _rebuilt(kept: int, share: float) -> list[Work]:
    merged = passed((2 * _COLUMN + _PLACE) * kept + 2 * _POSITION * share * kept)
    return [*tiny(1), merged, *[passed((2 * _WEIGHT + _PLACE) * kept)] * _ARRAYS]


def lists(kept: Sequence[int]) -> list[Work]:
    """What products read of the patterns of all layers, both directions: columns read by three launches, a place for
    each value written."""
    sets = list_sets(len(kept))
    columns, places = float(_COLUMN * sum(kept)), float(_PLACE * sum(kept))
    share = _DIRECTIONS / sets
    some = [passed(columns * share), passed(columns * share), passed((columns + places) * share)]
    return [*some, *tiny(_LAUNCHES_OF_A_SET - len(some))] * sets


def list_sets(layers: int) -> int:
    """Sets of launches that make the lists of so many layers: one for each layer and direction."""
    return _DIRECTIONS * layers


def dense_prune(sizes: Sequence[int], density: float, share: float) -> list[Work]:
    """Of each dense layer: magnitudes, pruned ones out of the way, `topk`, the mask off and on, weights and momentum
    multiplied by it. Which positions grow is known on both sides."""
    return [work for size in sizes for work in _dense(size, round(density * share * size))]


def _dense(size: int, swapped: int) -> list[Work]:
    magnitudes, hidden = passed(2 * _WEIGHT * size), passed((2 * _WEIGHT + _MASK) * size)
    turned = [passed(2 * _MASK * size), passed((_POSITION + _MASK) * swapped)] * 2  # a copy, and what changes of it
    masked = passed((2 * _WEIGHT + _MASK) * size)
    return [magnitudes, hidden, *topk(1, size, swapped, _WEIGHT), *turned, *[masked] * _ARRAYS]
