"""What an op should take: bytes and instructions of every kernel counted, divided by what the device can do.

An op is a list of kernels; each takes the longest of its arithmetic, its traffic in shared memory, in the cache and in
device memory, and the least a kernel of a graph takes. Times add up. Estimates are floors times an efficiency that is
an assumption, said beside every figure. What our kernels do is counted in `work.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsparse.bench.cases import LayerCase

__all__ = ["ELEMENT", "H200", "Machine", "Work", "dense_work", "loads", "seconds", "sizes_of"]


@dataclass(frozen=True)
class Machine:
    """Ceilings of a device.

    Attributes:
        flops: dense multiply-adds count 2, a second, by precision.
        shared: bytes a second from shared memory, all multiprocessors together.
        cache: bytes a second from the second-level cache.
        memory: bytes a second from device memory.
        kernel: seconds of the shortest kernel in a graph.
        dense: share of `flops` that dense libraries are assumed to reach in a convolution, by precision.
        sparse: share that sparse kernels are assumed to reach of the ceilings of shared memory and of tensor cores.
        mma: share of `flops` that the tensor cores' instructions for a warp reach; those for four warps reach all.
    """

    flops: dict[str, float]
    shared: float
    cache: float
    memory: float
    kernel: float
    dense: dict[str, float]
    sparse: float
    mma: float


# bf16 and memory were measured on one H200; the others are 132 multiprocessors of 128 bytes and 128 float32
# multiply-adds a clock at 1.755 GHz, tf32 half of bf16. The cache's rate and `mma` are the design's estimates,
# shares the middle of its ranges.
H200 = Machine(
    flops={"bf16": 780e12, "tf32": 390e12, "fp32": 52e12},
    shared=29.7e12,
    cache=5.5e12,
    memory=4.3e12,
    kernel=2e-6,
    dense={"bf16": 0.40, "tf32": 0.475, "fp32": 0.80},
    sparse=0.65,
    mma=0.62,
)
ELEMENT = {"bf16": 2, "tf32": 4, "fp32": 4}  # bytes


@dataclass(frozen=True)
class Work:
    """One kernel.

    Attributes:
        flops: 2 for each multiply-add, on the units of `precision`.
        precision: of those units.
        shared: bytes read from shared memory.
        memory: bytes read from and written to device memory, each once.
        cache: bytes read from the second-level cache, as often as blocks read them.
        by: who multiplies: `library`, dense code; `cores`, ordinary ones; `mma`, our kernels on tensor cores.
    """

    flops: float
    precision: str
    shared: float
    memory: float
    cache: float = 0.0
    by: Literal["library", "cores", "mma"] = "library"


def seconds(works: Sequence[Work], machine: Machine = H200) -> float:
    """Time of an op."""
    return sum(max(loads(work, machine).values()) for work in works)


def loads(work: Work, machine: Machine = H200) -> dict[str, float]:
    """Seconds that each part of the device needs for a kernel, which takes the longest of them."""
    share = {"library": machine.dense[work.precision], "cores": 1.0, "mma": machine.mma * machine.sparse}[work.by]
    return {
        "launches": machine.kernel,
        "arithmetic": work.flops / (machine.flops[work.precision] * share),
        "shared memory": work.shared / (machine.shared * machine.sparse),
        "cache": work.cache / machine.cache,
        "memory": work.memory / machine.memory,
    }


def sizes_of(case: LayerCase) -> tuple[int, int, int]:
    """Numbers of the input, of the output and of the dense weight."""
    inputs = case.batch * case.inputs * (1 if case.size is None else case.size**2)
    taps = 1 if case.size is None else case.kernel**2
    return inputs, case.batch * case.outputs * case.places, case.inputs * case.outputs * taps


def dense_work(case: LayerCase, op: str, precision: str) -> list[Work]:
    """One dense op: one kernel that reads two of input, output and weight, and writes the third."""
    del op  # all three multiply the same numbers and move the same tensors
    inputs, outputs, weights = sizes_of(case)
    flops = 2.0 * weights * case.batch * case.places
    return [Work(flops, precision, 0.0, float(ELEMENT[precision] * (inputs + outputs + weights)))]
