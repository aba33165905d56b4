"""What our CUDA kernels do in one op of a layer, forward or backward, counted for the roofline model.

A backward pass is three products in two kernels (csrc/cuda/block_product.cu): the weight gradient, in parts, beside
which other blocks of threads pack values, and the gradient of x, beside which others add the parts.

Activations lie batch-innermost, as sparse layers leave them to one another: where the batch is no multiple of 8 they
are turned into lines of 8 samples and back, which is counted too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from benchmarks.gpu.roofline import ELEMENT, Work, sizes_of
from fedsparse.bench.cases import LayerCase

__all__ = [
    "CHUNK",
    "FULL_DEVICE",
    "LINE",
    "Count",
    "PixelTiles",
    "csr16",
    "gradient_channels",
    "gradient_tiles",
    "strips",
    "turns",
]

# Kernels of an op, `forward` or `backward`, of a layer that keeps `nnz` weights, in a precision.
Count = Callable[[LayerCase, str, int, str], list[Work]]


class _Tile(NamedTuple):
    """Pixels of a block of threads, of neighbouring images of 8 samples."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


LINE = 8  # samples
_PIXELS = 8  # of a warp, each with a line
_WARPS = 16  # of a block of the gather
_GRADIENT = 64  # target channels of a block of the weight gradient
FULL_DEVICE = 264  # blocks that are wanted of a weight gradient
_CHANNELS = 256  # of a slab of strips, at most
_INDEX, _SUM = 4, 4  # bytes of a place among the values, and of a sum
_SECTOR = 32  # bytes that memory moves at least
_ROWS = 32  # target channels of a block of the unstructured kernels
_UNITED = 16  # input channels of a strip that are not alike
CHUNK, _STAGE = 16, 56 << 10  # channels of a slab of strips, and of them and one more, bytes
_ROW = _Tile(1, 1, 16)  # of a linear layer
# By bytes of a number, from the largest to the smallest (csrc/cuda/csr16.h, csrc/cuda/block.h).
_OF_TAPS = {4: (_Tile(1, 8, 8), _Tile(1, 4, 4)), 2: (_Tile(2, 4, 8), _Tile(2, 4, 4))}
_OF_STRIPS = {4: (_Tile(1, 4, 8), _Tile(1, 4, 4)), 2: (_Tile(2, 4, 4), _Tile(1, 4, 4))}


def csr16(case: LayerCase, op: str, nnz: int, precision: str) -> list[Work]:
    """One op on unstructured weights (csrc/cuda/csr16.h).

    A multiply-add reads one number of a line, 4 or 2 bytes, from shared memory and holds the rest in registers.
    """
    element, lines = ELEMENT[precision], _lines(case)
    inputs, outputs = _moved(case)

    def product(part: str) -> Work:
        named = 2 * nnz + (_INDEX * nnz if part == "grad_x" else 0)
        slabs = _slabs(case, part, element, _tile_of_taps(case, part, element), _ROWS)
        return Work(
            2.0 * nnz * lines * case.places, "fp32", float(element * nnz * lines * case.places),
            float(element * (inputs + outputs + nnz) + named), slabs, by="cores",
        )  # fmt: skip

    if op == "forward":
        return [*turns(case, op, precision), product(op)]
    pixels = _pixel_tiles(case, _tile_of_taps(case, "grad_w", element), element)
    parts = min(pixels.total, -(-FULL_DEVICE // -(-case.outputs // _ROWS)))
    kept, added = _in_parts(product("grad_w"), nnz, parts, element)
    return [*turns(case, op, precision), kept, _together(product("grad_x"), added)]


def strips(width: int, *, inputs_alike: bool) -> Count:
    """Counts of weights in which `width` neighbouring output channels keep the same lines (csrc/cuda/block.h).

    Args:
        width: 8, 16 or 32.
        inputs_alike: whether as many input channels do, too; else the gradient of x multiplies the union of what 16
            input channels keep.
    """

    def count(case: LayerCase, op: str, nnz: int, precision: str) -> list[Work]:
        element, (inputs, outputs) = ELEMENT[precision], _moved(case)
        # float32 keeps its accuracy in three products of TF32.
        flops, unit = (6.0, "tf32") if precision == "fp32" else (2.0, precision)
        memory = float(element * (inputs + outputs + nnz))

        def gathered(part: str) -> tuple[Work, Work]:
            """Values are packed first; a warp then reads a strip's for its pixels, and each line it names once."""
            united = part == "grad_x" and not inputs_alike
            channels, filled = (_UNITED, _union(nnz / sizes_of(case)[2])) if united else (width, 1.0)
            products = filled * nnz * _lines(case) * case.places
            tile = _tile_of_strips(case, part, element)
            slabs = _slabs(case, part, element, tile, _channels_of_a_block(case, part, tile, channels))
            cache = element * products / (_PIXELS * LINE) + slabs
            product = Work(flops * products, unit, element * products / channels, memory, cache, by="mma")
            return Work(0.0, unit, 0.0, float(filled * nnz * (2 * element + _INDEX)), by="mma"), product

        if op == "forward":
            return [*turns(case, op, precision), *gathered(op)]
        # A line of x serves a strip, a line of grad_y the lines of a warp.
        products = nnz * _lines(case) * case.places
        shared = element * products * (1 / width + 1 / _warp_lines(width))
        slabs = _slabs(case, "grad_w", element, _tile_of_strips(case, "grad_w", element), _GRADIENT)
        gradient = Work(flops * products, unit, shared, memory, slabs, by="mma")
        kept, added = _in_parts(gradient, nnz, _splits(case, element), element + _INDEX)
        pack, product = gathered("grad_x")
        return [*turns(case, op, precision), _together(kept, pack), _together(product, added)]

    return count


def _in_parts(gradient: Work, nnz: int, parts: int, moved: int) -> tuple[Work, Work]:
    """A weight gradient that leaves its sums in so many parts, in the cache, and what adds them up: `moved` bytes for
    each weight are its gradient and, in a list, its place."""
    left = float(_SUM * parts * nnz)
    kept = replace(gradient, cache=gradient.cache + left)
    return kept, replace(gradient, flops=0.0, shared=0.0, memory=float(moved * nnz), cache=left)


def _together(first: Work, second: Work) -> Work:
    """Two kernels as one, whose blocks of threads share the device."""
    return replace(
        first, flops=first.flops + second.flops, shared=first.shared + second.shared,
        memory=first.memory + second.memory, cache=first.cache + second.cache,
    )  # fmt: skip


def _splits(case: LayerCase, element: int) -> int:
    """Of the tiles that a weight gradient goes over: as many as fill the device."""
    pixels = gradient_tiles(case, element)
    channels = gradient_channels(case, element, _CHANNELS)
    blocks = -(-case.outputs // _GRADIENT) * -(-case.inputs // channels)
    return min(pixels.total, -(-FULL_DEVICE // blocks))


class _Reach(NamedTuple):
    """How an op goes over pixels.

    Attributes:
        side: pixels of the target along an axis, of a launch.
        step: source pixels from one to the next.
        reaches: source pixels that the taps of a pixel span along an axis, for each launch. The gradient of x goes over
            its pixels once for every residue modulo the stride, with the taps that meet it; without any it reads none.
    """

    side: int
    step: int
    reaches: tuple[int, ...]

    @classmethod
    def of(cls, case: LayerCase, op: str) -> "_Reach":
        assert case.size is not None
        if op != "grad_x":
            return cls((case.size - 1) // case.stride + 1, case.stride, (case.kernel,))
        taps = (len(range(residue, case.kernel, case.stride)) for residue in range(case.stride))
        return cls(-(-case.size // case.stride), 1, tuple(count for count in taps if count))

    def lines(self, tile: _Tile) -> int:
        """Of a channel of the slab, of all launches together."""
        return tile.images * sum(self._halos(tile.rows)) * sum(self._halos(tile.columns))

    def pitch(self, tile: _Tile) -> int:
        """Of a channel of the slab, of the launch that takes most."""
        return tile.images * max(self._halos(tile.rows)) * max(self._halos(tile.columns)) | 1

    def _halos(self, side: int) -> list[int]:
        return [(side - 1) * self.step + reach for reach in self.reaches]


def _fits(picture: int, tile: _Tile) -> bool:
    return picture <= tile.rows and picture <= tile.columns


def _tile_of_taps(case: LayerCase, op: str, element: int) -> _Tile:
    large, small = _OF_TAPS[element]
    return _ROW if case.size is None else small if _fits(_Reach.of(case, op).side, small) else large


def _tile_of_strips(case: LayerCase, op: str, element: int) -> _Tile:
    """Larger ones leave no room for the channels of a chunk, or a smaller one has room for the picture."""
    if case.size is None:
        return _ROW
    reach, (large, small) = _Reach.of(case, op), _OF_STRIPS[element]
    whole = large.images == small.images and _fits(reach.side, small)
    full = (CHUNK + 1) * reach.pitch(large) * LINE * element > _STAGE
    return small if whole or full else large


def _warp_lines(width: int) -> int:
    """Lines of a list whose sums a warp of the weight gradient holds."""
    return CHUNK * (8 if width < 32 else 4)


def _channels_of_a_block(case: LayerCase, op: str, tile: _Tile, width: int) -> int:
    """Target channels of a block of the gather, of 512 threads or, where these are too many, of 256."""
    run = min(2 * width, 32)  # of a warp
    most, targets = _WARPS // (tile.pixels // _PIXELS), case.inputs if op == "grad_x" else case.outputs
    return run * (most if targets >= run * most else most // 2)


def _slabs(case: LayerCase, op: str, element: int, tile: _Tile, channels: int) -> float:
    """Bytes that blocks read into shared memory: of each tile what kernels reach from it, once for every `channels`
    target channels. Pixels lie a batch apart, so that the line of a single image in 16 bits fills half a sector.
    """
    sources, targets = (case.outputs, case.inputs) if op == "grad_x" else (case.inputs, case.outputs)
    blocks, images = -(-targets // channels), _lines(case) // LINE
    if case.size is None:
        return float(blocks * sources * images * LINE * element)
    reach = _Reach.of(case, op)
    tiles = -(-reach.side // tile.rows) * -(-reach.side // tile.columns) * -(-images // tile.images)
    line = max(tile.images * LINE * element, _SECTOR) / tile.images
    return blocks * sources * tiles * reach.lines(tile) * line


class PixelTiles(NamedTuple):
    """The tiles of pixels that a weight gradient goes over.

    Attributes:
        total: how many there are.
        pixels: of a tile, each with a line of samples.
        pitch: lines that a channel of the slab takes in shared memory.
        read: bytes that are read of a channel for a tile.
    """

    total: int
    pixels: int
    pitch: int
    read: float


def gradient_tiles(case: LayerCase, element: int) -> PixelTiles:
    """Those of slabs of whole chunks of channels, for numbers of `element` bytes."""
    return _pixel_tiles(case, _tile_of_strips(case, "grad_w", element), element)


def gradient_channels(case: LayerCase, element: int, most: int) -> int:
    """Of a slab, whole chunks of them if there is room for one: up to `most`."""
    channels = min(most, case.inputs, _STAGE // (gradient_tiles(case, element).pitch * LINE * element) - 1)
    return channels - channels % CHUNK if channels > CHUNK else channels


def _pixel_tiles(case: LayerCase, tile: _Tile, element: int) -> PixelTiles:
    images = _lines(case) // LINE
    if case.size is None:
        pitch, read = tile.pixels | 1, float(tile.pixels * LINE * element)
        return PixelTiles(-(-images // tile.pixels), tile.pixels, pitch, read)
    reach = _Reach.of(case, "grad_w")
    count = -(-reach.side // tile.rows) * -(-reach.side // tile.columns) * -(-images // tile.images)
    once = replace(case, inputs=1, outputs=1)
    return PixelTiles(count, tile.pixels, reach.pitch(tile), _slabs(once, "grad_w", element, tile, 1) / count)


def _union(density: float) -> float:
    """How many times the kept weights the union of independent columns holds, for all columns of a strip."""
    return (1 - (1 - density) ** _UNITED) / density


def _lines(case: LayerCase) -> int:
    """Samples computed: lines are computed whole."""
    return -(-case.batch // LINE) * LINE


def _moved(case: LayerCase) -> tuple[int, int]:
    """Numbers of the input and of the output, as they are stored."""
    inputs, outputs, _ = (size // case.batch * _lines(case) for size in sizes_of(case))
    return inputs, outputs


def turns(case: LayerCase, op: str, precision: str) -> list[Work]:
    """Activations into lines and back; the gradient of values needs no turn back."""
    if case.batch % LINE == 0:
        return []
    inputs, outputs = _moved(case)
    # Both in and, of a product, one out; the gradient of the weight, "grad_w" alone, has nothing to turn back.
    moved = {"forward": (inputs, outputs), "backward": (outputs, inputs, inputs), "grad_w": (inputs, outputs)}[op]
    return [Work(0.0, "fp32", 0.0, float(2 * ELEMENT[precision] * size), by="cores") for size in moved]
