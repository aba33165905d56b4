"""What our CUDA kernels do in one op of a layer, counted for the roofline model.

Activations lie batch-innermost, as sparse layers leave them to one another: where the batch is no multiple of 8 they
are turned into lines of 8 samples and back, which is counted too.
"""

from collections.abc import Callable

from benchmarks.gpu.roofline import ELEMENT, Work, sizes_of
from fedsparse.bench.cases import LayerCase

__all__ = ["Count", "csr16", "strips"]

# Kernels of an op of a layer that keeps `nnz` weights, in a precision.
Count = Callable[[LayerCase, str, int, str], list[Work]]

_LINE = 8  # samples
_PIXELS = 8  # of a warp, each with a line
_WARP_LINES = 64  # of a list, whose sums a warp of the weight gradient holds
_INDEX = 4  # bytes of a place among the values
_SECTOR = 32  # bytes that memory moves at least
_ROWS = 32  # target channels of a block of the unstructured kernels
_SMALL, _LARGE = 4, 8  # pixels along a side of a tile
_UNITED = 16  # input channels of a strip that are not alike


def csr16(case: LayerCase, op: str, nnz: int, precision: str) -> list[Work]:
    """One op on unstructured weights (csrc/cuda/csr16.h).

    A multiply-add reads one number of a line, 4 or 2 bytes, from shared memory and holds the rest in registers.
    """
    element, lines = ELEMENT[precision], _lines(case)
    inputs, outputs = _moved(case)
    product = Work(
        2.0 * nnz * lines * case.places, "fp32", float(element * nnz * lines * case.places),
        float(element * (inputs + outputs + nnz) + 2 * nnz + (_INDEX * nnz if op == "grad_x" else 0)),
        _slabs(case, op, precision, _ROWS), by="cores",
    )  # fmt: skip
    return [*_turns(case, op, precision), product]


def strips(width: int, *, inputs_alike: bool) -> Count:
    """Counts of weights in which `width` neighbouring output channels keep the same lines (csrc/cuda/block.h).

    Args:
        width: 8, 16 or 32.
        inputs_alike: whether as many input channels do, too; else the gradient of x multiplies the union of what 16
            input channels keep.
    """

    def count(case: LayerCase, op: str, nnz: int, precision: str) -> list[Work]:
        element, (inputs, outputs) = ELEMENT[precision], _moved(case)
        united = op == "grad_x" and not inputs_alike
        channels, filled = (_UNITED, _union(nnz / sizes_of(case)[2])) if united else (width, 1.0)
        products = filled * nnz * _lines(case) * case.places
        # float32 keeps its accuracy in three products of TF32.
        flops, unit = (6.0, "tf32") if precision == "fp32" else (2.0, precision)
        memory = float(element * (inputs + outputs + nnz))
        if op == "grad_w":
            # A line of x serves a strip, a line of grad_y the lines of a warp. The sums of parts are few.
            shared = element * products * (1 / channels + 1 / _WARP_LINES)
            slabs = _slabs(case, op, precision, width)
            return [*_turns(case, op, precision), Work(flops * products, unit, shared, memory, slabs, by="mma")]
        # Values are packed first; a warp then reads a strip's for its pixels, and each line it names once.
        pack = Work(0.0, unit, 0.0, float(filled * nnz * (2 * element + _INDEX)))
        cache = element * products / (_PIXELS * _LINE) + _slabs(
            case, op, precision, channels * _strips_of_a_block(case, op)
        )
        product = Work(flops * products, unit, element * products / channels, memory, cache, by="mma")
        return [*_turns(case, op, precision), pack, product]

    return count


def _side(case: LayerCase, op: str) -> int:
    """Pixels along a side of what a launch computes, or sums over.

    The gradient of x goes over its pixels once for every residue modulo the stride, each with the taps that meet it.
    """
    assert case.size is not None
    return -(-case.size // case.stride) if op == "grad_x" else (case.size - 1) // case.stride + 1


def _tile(case: LayerCase, op: str) -> int:
    """Pixels along a side of a tile."""
    return _SMALL if _side(case, op) <= _SMALL else _LARGE


def _strips_of_a_block(case: LayerCase, op: str) -> int:
    """Of 512 threads, a warp for 8 pixels of a strip; linear layers have rows of 16 pixels."""
    pixels = 16 if case.size is None else _tile(case, op) ** 2
    return 16 // (pixels // _PIXELS)


def _slabs(case: LayerCase, op: str, precision: str, channels: int) -> float:
    """Bytes that blocks read into shared memory: of each tile what kernels reach from it, once for every `channels`
    target channels. Neighbouring pixels lie a batch apart, so that a line of 16-bit numbers fills half a sector.
    """
    element, lines = ELEMENT[precision], _lines(case) // _LINE
    sources, targets = (case.outputs, case.inputs) if op == "grad_x" else (case.inputs, case.outputs)
    blocks = -(-targets // channels)
    if case.size is None:
        return float(blocks * sources * lines * _LINE * element)
    grids, step, reach = 1, case.stride, case.kernel
    if op == "grad_x":
        grids, step, reach = case.stride**2, 1, -(-case.kernel // case.stride)
    tile = _tile(case, op)
    pixels = (-(-_side(case, op) // tile)) ** 2 * ((tile - 1) * step + reach) ** 2
    return float(grids * blocks * sources * lines * pixels * max(_LINE * element, _SECTOR))


def _union(density: float) -> float:
    """How many times the kept weights the union of independent columns holds, for all columns of a strip."""
    return (1 - (1 - density) ** _UNITED) / density


def _lines(case: LayerCase) -> int:
    """Samples computed: lines are computed whole."""
    return -(-case.batch // _LINE) * _LINE


def _moved(case: LayerCase) -> tuple[int, int]:
    """Numbers of the input and of the output, as they are stored."""
    inputs, outputs, _ = (size // case.batch * _lines(case) for size in sizes_of(case))
    return inputs, outputs


def _turns(case: LayerCase, op: str, precision: str) -> list[Work]:
    """Into lines and back; the gradient of values needs no turn back."""
    if case.batch % _LINE == 0:
        return []
    inputs, outputs = _moved(case)
    moved = {"forward": (inputs, outputs), "grad_x": (outputs, inputs), "grad_w": (inputs, outputs)}[op]
    return [Work(0.0, "fp32", 0.0, float(2 * ELEMENT[precision] * size), by="cores") for size in moved]
