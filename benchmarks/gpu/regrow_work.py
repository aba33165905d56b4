"""The largest gradients of pruned weights, counted: ours on tensor cores, tile by tile, and torch's."""

from typing import NamedTuple

from benchmarks.gpu.occupancy import issued, unevenly
from benchmarks.gpu.roofline import ELEMENT, Work, dense_work, sizes_of
from benchmarks.gpu.torch_work import passed, tiny, topk
from benchmarks.gpu.work import CHUNK, FULL_DEVICE, LINE, gradient_channels, gradient_tiles, turns
from fedsparse.bench.cases import LayerCase

__all__ = ["dense_regrow", "regrow"]

# csrc/cuda/dense_gradient.cuh
_STRIP = 32  # target channels of a warp
_SETS, _WARPS = 5, 8  # chunks of lines that a warp has sums for, warps of a block
_LINES = 4 * _SETS * CHUNK  # of a block
# csrc/cuda/topk.cu
_SAMPLED = 16  # of so many pieces or tiles, one
_FEW = 1 << 12  # positions that are all listed
_SMALL = 1 << 16  # positions that are all counted, before those within the bound are listed
_RANKED = 1 << 14  # room for entries up to which they are compared with one another, and not sorted
_SLACK = 1024  # entries that there is room for beside four for each position wanted
_COMPARED, _RANKED_BY_BLOCK = 4.0, 32  # instructions for each pair of entries, entries of a block
_MAGNITUDE = 31  # bits
_DIGIT, _SORTED = 11, 8  # bits of a digit that is searched, and that is sorted
_MASK, _INDEX = 1, 8  # bytes
_LISTED, _ENTRY, _FOUND = 2, 8, 12  # entries for each position wanted; bytes of an entry and of a position found
_SUM = 4  # bytes


class _Cut(NamedTuple):
    """How a weight is cut.

    Attributes:
        strips: of a block.
        channels: of a slab.
        tiles: of the weight.
        splits: of the tiles of pixels.
    """

    strips: int
    channels: int
    tiles: int
    splits: int


def regrow(case: LayerCase, k: int, precision: str) -> list[Work]:
    """One layer's search for k positions, launch for launch; that the sample's bound holds is taken for granted.

    What is listed is ordered: about 2 k entries, as many of a small weight, or all positions of one of few, as if none
    were kept.
    """
    size, cut = sizes_of(case)[2], _cut(case, ELEMENT[precision])
    listed_keys = size if size <= _FEW else _LISTED * k
    bits = _MAGNITUDE + (size - 1).bit_length()
    digits = -(-bits // _DIGIT)
    if cut.tiles <= FULL_DEVICE:  # few enough to leave their sums in memory
        sums = float(_SUM * size * cut.splits)
        counted = sums if size <= _SMALL else sums / _SAMPLED
        products, sample, listed = [_gradients(case, precision, cut.tiles)], passed(counted), passed(sums)
    else:
        products, listed = [], _gradients(case, precision, cut.tiles)
        sample = _gradients(case, precision, -(-cut.tiles // _SAMPLED))
    bound = [] if size <= _FEW else [sample, *tiny(1)]
    repairs = 0 if size <= _SMALL else 2 * digits + 1  # of the bound, which end at once
    begin = [*turns(case, "grad_w", precision), *tiny(1), *products]
    return [*begin, *bound, listed, *tiny(repairs), *_ordered(listed_keys, k, bits)]


def _ordered(listed: int, k: int, bits: int) -> list[Work]:
    """The first k of what is listed, compared with one another or sorted digit by digit, in two launches each."""
    if 4 * k + _SLACK <= _RANKED:
        compared = issued(unevenly(_COMPARED * listed * listed, -(-listed // _RANKED_BY_BLOCK)))
        return [Work(compared, "fp32", 0.0, float(_ENTRY * listed + _FOUND * k), by="cores")]
    sort = passed(2 * _ENTRY * listed)
    return [*[sort] * (2 * -(-bits // _SORTED)), passed((_ENTRY + _FOUND) * k)]


def dense_regrow(case: LayerCase, k: int, precision: str) -> list[Work]:
    """Dense gradient of the weight; zeros at kept positions; magnitudes; `topk`, unsorted; the gradients found."""
    size, element = sizes_of(case)[2], ELEMENT[precision]
    masked, magnitudes = passed((2 * element + _MASK) * size), passed(2 * element * size)
    found = passed((_INDEX + 2 * element) * k)
    return [*dense_work(case, "grad_w", precision), masked, magnitudes, *topk(1, size, k, element), found]


def _taps(case: LayerCase) -> int:
    return 1 if case.size is None else case.kernel**2


def _cut(case: LayerCase, element: int) -> _Cut:
    most, pixels = max(_LINES // _taps(case), 1), gradient_tiles(case, element)
    channels = gradient_channels(case, element, most)
    strips = 2 if case.outputs > _STRIP else 1
    tiles = -(-case.outputs // (strips * _STRIP)) * -(-case.inputs // channels)
    return _Cut(strips, channels, tiles, max(min(FULL_DEVICE // tiles, pixels.total), 1))


def _gradients(case: LayerCase, precision: str, tiles: int) -> Work:
    """Some tiles of the dense gradient.

    A block multiplies what its warps have sums for, rows and pixels that do not exist as well. A line of x serves the
    strip of a warp, a line of grad_y its chunks; both are written to shared memory first.
    """
    element, cut, pixels = ELEMENT[precision], _cut(case, ELEMENT[precision]), gradient_tiles(case, ELEMENT[precision])
    chunks, teams = -(-cut.channels * _taps(case) // CHUNK), 1
    while teams * _SETS < chunks:
        teams *= 2
    sets = -(-chunks // teams)
    blocks, rows = tiles * cut.splits, cut.strips * _STRIP
    samples = pixels.total * pixels.pixels * LINE
    products = float(tiles * teams * sets * CHUNK * rows * samples)
    staged = tiles * (cut.channels * pixels.read * pixels.total + rows * samples * element)
    shared = element * products * (1 / _STRIP + 1 / (sets * CHUNK)) + staged
    # float32 keeps its accuracy in three products of TF32.
    flops, unit = (6.0, "tf32") if precision == "fp32" else (2.0, precision)
    left = _SUM * blocks * cut.channels * _taps(case) * rows if cut.tiles <= FULL_DEVICE else 0
    inputs, outputs, _ = sizes_of(case)
    return Work(
        unevenly(flops * products, blocks), unit, unevenly(shared, blocks),
        float(element * (inputs + outputs) + left), unevenly(staged, blocks), by="mma",
    )  # fmt: skip
