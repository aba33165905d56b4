"""Convolutions of whole units against single weights of the same density, on one thread.

`python -m benchmarks.bench_strips`: processor time of the CPU kernels, per kept weight, blocked tensors in and out;
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
from fedsparse.pattern.granularity import parse

WAYS = ("forward", "backward", "search")  # the last one for pruned weights of large gradient
GRANULARITIES = ("element", "vector:16", "block:16")
DENSITIES = (0.1, 0.3)
ROUNDS = 9


def candidates(layer: LayerCase) -> Mapping[str, tuple[Callable[[], object], int]]:
    """What is timed, and what its time is to be divided by: kept weights, which a search does not ask for."""
    operands, backend = Operands(layer), CpuBackend()
    shape, size = tuple(operands.kept.shape), layer.input_shape()
    pattern = Pattern.from_mask(operands.kept)
    case = Case(shape, size, pattern.nnz, Geometry(padding=(1, 1)))
    x, grad = Term(to_blocked(operands.x)), to_blocked(operands.grad)
    values = operands.dense.weight.detach()[operands.kept]
    tile, fifth = parse(layer.granularity).tiling(shape).tile, pattern.nnz // 5
    return {
        "forward": (lambda: backend.forward_blocked(x, values, pattern, None, case), pattern.nnz),
        "backward": (lambda: backend.backward_blocked(grad, x, values, pattern, True, case), pattern.nnz),
        "search": (lambda: backend.topk_pruned_blocked(grad, x, pattern, fifth, case, tile=tile), 1),
    }


def compare(layer: LayerCase, density: float) -> str:
    """One row: for each granularity how many times faster than single weights, by what is computed."""
    found = {}
    for units in GRANULARITIES:
        found[units] = candidates(
            LayerCase(layer.inputs, layer.outputs, layer.size, density=density, granularity=units)
        )
    best: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        for units, runs in found.items():
            for name, (run, work) in runs.items():
                start = time.thread_time()
                run()
                seconds = (time.thread_time() - start) / work
                best[units, name] = min(seconds, best.get((units, name), math.inf))
    cells = [
        " / ".join(f"{best['element', name] / best[units, name]:.2f}" for name in WAYS) for units in GRANULARITIES[1:]
    ]
    return f"| {layer.shape}, {density:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"| {' / '.join(WAYS)} | {' | '.join(GRANULARITIES[1:])} |")
    for layer in SYMMETRIC:
        for density in DENSITIES:
            print(compare(layer, density), flush=True)
