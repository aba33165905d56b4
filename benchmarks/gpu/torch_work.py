"""What torch's kernels do between the products of a dense network: passes over tensors, and selection.

Selection is what torch 2 does on a device (aten/src/ATen/native/cuda/TensorTopK.cu): digits of 8 bits, counted by many
blocks, where rows are few and long; else a block a row, which counts digits of 2 bits.
"""

from benchmarks.gpu.occupancy import CACHE_LATENCY, starved
from benchmarks.gpu.roofline import H200, Work

__all__ = ["passed", "tiny", "topk"]

_INDEX = 8  # bytes of a position
_THREADS = 1024  # of a block that selects alone
# Up to so many rows, those of at least so many elements are counted by many blocks; of more rows those of 400.
_LONG = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4_000, 800))
_LONG_OF_MANY = 400


def passed(moved: float) -> Work:
    """One kernel that moves so many bytes and computes next to nothing."""
    return Work(0.0, "fp32", 0.0, float(moved))


def tiny(count: int) -> list[Work]:
    """Kernels that take as long as the shortest."""
    return [passed(0.0)] * count


def topk(rows: int, size: int, k: int, element: int) -> list[Work]:
    """`x.topk(k, sorted=False)` of `(rows, size)` numbers of `element` bytes."""
    whole, found = float(rows * size * element), float(rows * k * (element + _INDEX))
    if size >= next((least for most, least in _LONG if rows <= most), _LONG_OF_MANY):
        # Of each digit the counts of blocks, of rows, and before blocks; then two sums over blocks, a kernel to begin
        # and one to add.
        digits = [work for _ in range(element) for work in (passed(whole), *tiny(2))]
        return [*tiny(1), *digits, *tiny(4), passed(whole + found)]
    passes = 4 * element + 2  # digits, then what is above the bound and what equals it
    return [Work(0.0, "fp32", 0.0, whole + found,
                 starved(passes * whole, rows * _THREADS * element, CACHE_LATENCY, H200.cache))]  # fmt: skip
