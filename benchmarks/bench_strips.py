"""Convolutions whose neighbouring channels are kept alike against single weights of the same density, on one thread.

`python -m benchmarks.bench_strips`: processor time per kept weight of the CPU kernels, blocked tensors in and out;
candidates take turns, minima are compared, so that neighbours on the machine matter little.
"""

import math
import time
from collections.abc import Callable, Mapping

import torch

from fedsparse.backends import Case, Geometry
from fedsparse.backends.cpu import CpuBackend, Term, to_blocked
from fedsparse.bench.cases import SYMMETRIC, LayerCase, Operands
from fedsparse.pattern import Pattern

GRANULARITIES = ("element", "vector:16", "block:16")
DENSITIES = (0.1, 0.3)
ROUNDS = 9


def candidates(layer: LayerCase) -> tuple[int, Mapping[str, Callable[[], object]]]:
    """Number of kept weights, and what is timed."""
    operands, backend = Operands(layer), CpuBackend()
    shape, size = tuple(operands.kept.shape), layer.input_shape()
    pattern = Pattern.from_mask(operands.kept)
    case = Case(shape, size, pattern.nnz, Geometry(padding=(1, 1)))
    x, grad = Term(to_blocked(operands.x)), to_blocked(operands.grad)
    values = operands.dense.weight.detach()[operands.kept]
    return pattern.nnz, {
        "forward": lambda: backend.forward_blocked(x, values, pattern, None, case),
        "backward": lambda: backend.backward_blocked(grad, x, values, pattern, True, case),
    }


def compare(layer: LayerCase, density: float) -> str:
    """One row: for each granularity how many times faster than single weights, forward and backward."""
    found = {}
    for units in GRANULARITIES:
        found[units] = candidates(
            LayerCase(layer.inputs, layer.outputs, layer.size, density=density, granularity=units)
        )
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        for units, (nnz, runs) in found.items():
            for name, run in runs.items():
                start = time.thread_time()
                run()
                seconds = (time.thread_time() - start) / nnz
                best[units, name] = min(seconds, best.get((units, name), math.inf))
    cells = [
        " / ".join(f"{best['element', name] / best[units, name]:.2f}" for name in ("forward", "backward"))
        for units in GRANULARITIES[1:]
    ]
    return f"| {layer.shape}, {density:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"| forward / backward | {' | '.join(GRANULARITIES[1:])} |")
    for layer in SYMMETRIC:
        for density in DENSITIES:
            print(compare(layer, density), flush=True)
