"""What a layer should take: bytes and instructions of every kernel counted, divided by what the device can do.

An op is a list of kernels; each takes the longest of its arithmetic, its traffic in shared memory, its traffic in
device memory, and the least a kernel of a graph takes. Times add up. Estimates are floors times an efficiency that is
an assumption, said beside every figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedsparse.bench.cases import LayerCase

__all__ = ["H200", "Machine", "Work", "csr16_work", "dense_work", "estimate", "seconds", "sizes_of"]


@dataclass(frozen=True)
class Machine:
    """Ceilings of a device.

    Attributes:
        flops: dense multiply-adds count 2, a second, by precision.
        shared: bytes a second from shared memory, all multiprocessors together.
        memory: bytes a second from device memory.
        kernel: seconds of the shortest kernel in a graph.
        dense: share of `flops` that dense libraries are assumed to reach in a convolution, by precision.
        sparse: share of the shared-memory ceiling that sparse kernels are assumed to reach.
    """

    flops: dict[str, float]
    shared: float
    memory: float
    kernel: float
    dense: dict[str, float]
    sparse: float


# bf16 and memory were measured on one H200; the others are 132 multiprocessors of 128 bytes and 128 float32
# multiply-adds a clock at 1.755 GHz, tf32 half of bf16. Shares are the middle of the design's ranges.
H200 = Machine(
    flops={"bf16": 780e12, "tf32": 390e12, "fp32": 52e12},
    shared=29.7e12,
    memory=4.3e12,
    kernel=2e-6,
    dense={"bf16": 0.40, "tf32": 0.475, "fp32": 0.80},
    sparse=0.65,
)
_ELEMENT = {"bf16": 2, "tf32": 4, "fp32": 4}  # bytes
_LINE = 8  # samples


@dataclass(frozen=True)
class Work:
    """One kernel.

    Attributes:
        flops: 2 for each multiply-add, on the units of `precision`.
        precision: of those units.
        shared: bytes read from shared memory.
        memory: bytes read from and written to device memory.
        share: of the arithmetic ceiling that can be reached; None takes the machine's for dense libraries.
    """

    flops: float
    precision: str
    shared: float
    memory: float
    share: float | None = None


def seconds(works: Sequence[Work], machine: Machine = H200) -> float:
    """Time of an op."""
    return sum(_kernel_seconds(work, machine) for work in works)


def _kernel_seconds(work: Work, machine: Machine) -> float:
    share = machine.dense[work.precision] if work.share is None else work.share
    arithmetic = work.flops / (machine.flops[work.precision] * share)
    shared = work.shared / (machine.shared * machine.sparse)
    return max(arithmetic, shared, work.memory / machine.memory, machine.kernel)


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
    return [Work(flops, precision, 0.0, float(_ELEMENT[precision] * (inputs + outputs + weights)))]


def csr16_work(case: LayerCase, op: str, nnz: int, precision: str) -> list[Work]:
    """One op of the cuda backend on unstructured weights: turning rows into lines of 8 samples, and the product.

    A multiply-add reads one number of a line, 4 or 2 bytes, from shared memory and holds the rest in registers.
    """
    element, lines = _ELEMENT[precision], -(-case.batch // _LINE) * _LINE
    inputs, outputs, _ = (size // case.batch * lines for size in sizes_of(case))
    product = Work(
        2.0 * nnz * lines * case.places, "fp32", float(element * nnz * lines * case.places),
        float(element * (inputs + outputs + nnz) + 2 * nnz + (4 * nnz if op == "grad_x" else 0)), share=1.0,
    )  # fmt: skip
    into, out_of = {"forward": ((inputs,), (outputs,)), "grad_x": ((outputs,), (inputs,))}.get(
        op, ((inputs, outputs), ())
    )
    turns = [Work(0.0, "fp32", 0.0, float(2 * element * size), share=1.0) for size in (*into, *out_of)]
    return [*turns, product]


@dataclass(frozen=True)
class Estimate:
    """Of one op: seconds of the dense and of the sparse product."""

    dense: float
    ours: float


def estimate(case: LayerCase, op: str, ours: Sequence[Work], compared: str, machine: Machine = H200) -> Estimate:
    """Both sides of a comparison with dense in precision `compared`."""
    return Estimate(seconds(dense_work(case, op, compared), machine), seconds(ours, machine))
