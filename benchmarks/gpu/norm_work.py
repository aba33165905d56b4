"""Batch norms of a sparse network, with ReLUs and residual sums, as our kernels compute them (kernels/batch_norm*.py).

Instructions for each element are those of the loops that Triton 3.7 compiles for sm_90 (`cuobjdump -sass`). What is
read a second time comes from the second-level cache where that holds it.
"""

from dataclasses import dataclass

from benchmarks.gpu.occupancy import CACHE_LATENCY, MEMORY_LATENCY, issued, starved, unevenly
from benchmarks.gpu.roofline import H200, Work
from benchmarks.gpu.torch_work import tiny

__all__ = ["ALONE_BACK", "ALONE_FORWARD", "norm", "parts"]

# As in kernels/channels.py and, of channels that are not cut, in the two files of the kernels.
_LEAST, _MOST, _MOST_PARTS, _PROGRAMS = 1024, 4096, 64, 264
ALONE_FORWARD, ALONE_BACK = 8 * _MOST, 4 * _MOST
_STEPS = 2  # under way
# Instructions: of statistics; of the norm, of its gradient's sums and of its gradient, without and with a residual sum.
_MOMENTS, _ALONE, _SUMMED = 12.0, (12.5, 17.0, 22.0), (23.0, 19.0, 26.0)
_CACHE = 50e6  # bytes
_BIT = 1 / 8  # bytes, of an element


@dataclass(frozen=True)
class _Sweep:
    """A grid that goes over all elements of a tensor, `count` of each channel."""

    channels: int
    count: int
    element: int
    programs: int

    def reads(self, tensors: float, instructions: float, *, written: float = 0) -> Work:
        """One kernel that reads so many tensors of this size once, in memory, and writes so many."""
        return self._kernel(instructions, tensors + written, self._waits(tensors, MEMORY_LATENCY))

    def reads_twice(self, tensors: float, instructions: float, *, written: float) -> Work:
        """The same, twice, by programs that have a channel each."""
        whole = tensors * self._moved
        again = tensors if whole > _CACHE else 0
        cached = self._waits(tensors, MEMORY_LATENCY) + self._waits(tensors, CACHE_LATENCY)
        return self._kernel(instructions, tensors + again + written, cached)

    @property
    def _moved(self) -> float:
        return float(self.channels * self.count * self.element)

    def _waits(self, tensors: float, latency: float) -> float:
        block = min(max(1 << (-(-self.count // self.programs) - 1).bit_length(), _LEAST), _MOST)
        under_way = self.channels * self.programs * _STEPS * min(block, self.count) * self.element * tensors
        return starved(tensors * self._moved, under_way, latency, H200.cache)

    def _kernel(self, instructions: float, moved: float, cache: float) -> Work:
        each = unevenly(instructions * self.channels * self.count, self.channels * self.programs)
        return Work(issued(each), "fp32", 0.0, moved * self._moved, cache, by="cores")


def parts(channels: int, count: int, alone: int = 0) -> int:
    """Programs of a channel of `count` elements; one where there are no more than `alone`."""
    fills = max(1, min(_PROGRAMS // channels, -(-count // _MOST), _MOST_PARTS))
    return 1 if count <= alone else fills


def norm(channels: int, count: int, element: int, *, summed: bool = False) -> list[Work]:
    """Forward and back, with a ReLU behind it or without.

    With a residual sum, and the ReLU behind that, `summed`.
    """

    def sweep(alone: int = 0) -> _Sweep:
        return _Sweep(channels, count, element, parts(channels, count, alone))

    forward, normal, back = sweep(ALONE_FORWARD), sweep(), sweep(ALONE_BACK)
    merged = tiny(1) if forward.programs > 1 else []
    instructions, extra, bits = (_SUMMED, 1, _BIT / element) if summed else (_ALONE, 0, 0.0)
    of_norm, of_sums, of_gradient = instructions
    # What is added is read, with bits written; going back these are read, and its gradient is written.
    normalised = normal.reads(1 + extra, of_norm, written=1 + bits)
    works = [forward.reads(1, _MOMENTS), *merged, normalised]
    if back.programs > 1:
        return [*works, back.reads(2 + bits, of_sums), back.reads(2 + bits, of_gradient, written=1 + extra)]
    return [*works, back.reads_twice(2 + bits, of_sums + of_gradient, written=1 + extra)]
