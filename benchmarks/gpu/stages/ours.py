"""fedsparse: every kind on every layer and density, checked against float64 before it is timed."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.gpu import masks, optimizers, upkeep
from benchmarks.gpu.cases import OPS, PASSES, PRECISIONS, Precision, Sizes, sizes
from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import KINDS, Kind, of_device
from benchmarks.gpu.operands import Operands, errors, moved_bytes, told
from benchmarks.gpu.record import Row
from benchmarks.gpu.sweep import Job, layer_of, row_of, sweep
from benchmarks.gpu.timing import copies, measured
from fedsparse.backends import Case, layout_of
from fedsparse.backends.choose import BACKENDS
from fedsparse.bench.cases import LayerCase
from fedsparse.pattern import Pattern

__all__ = ["again", "run"]


def run(context: Context) -> None:
    """Density after density, so that a short run has all layers at the first one, and what comes besides them."""
    device = context.device()
    sweep(context, _jobs(sizes(cpu=context.cpu), device))


def again(first: Row) -> float:
    """Seconds of the first row's case now, as it was measured then."""
    kind = next(kind for kind in KINDS if kind.name == first["who"])
    found = _measured(layer_of(first["layer"]), kind, PRECISIONS[first["precision"]], sizes(cpu=kind.device == "cpu"))
    row = next(row for row in found if row["op"] == first["op"])
    return float((row["graph"] or row["eager"])["median"])


def _jobs(sizes: Sizes, device: str) -> Iterator[Job]:
    first, *others = sizes.densities
    yield from _layers(sizes, device, first)
    for more in (optimizers, upkeep, masks):
        yield from more.jobs(sizes, device)
    for density in others:
        yield from _layers(sizes, device, density)


def _layers(sizes: Sizes, device: str, density: float) -> Iterator[Job]:
    for kind in of_device(device):
        for name in kind.precisions:
            for case in sizes.cases:
                layer = replace(case, density=density)
                yield Job(
                    f"{kind.name} {layer} {name}",
                    lambda c=layer, k=kind, p=PRECISIONS[name]: _measured(c, k, p, sizes),  # type: ignore[misc]
                )


@cache
def _pattern(kind: Kind, case: LayerCase) -> Pattern:
    """On the kind's device, so that lists that a backend derives from it are built once."""
    return kind.pattern(case, seed=1).to(torch.device(kind.device, 0) if kind.device == "cuda" else "cpu")


def _measured(case: LayerCase, kind: Kind, precision: Precision, sizes: Sizes) -> Iterable[Row]:
    precision.set()
    pattern = _pattern(kind, replace(case, batch=1))
    asked = told(case, pattern.nnz, precision.dtype, kind.device)
    reason = BACKENDS[kind.backend].refuse(asked)
    if reason is not None:
        raise ValueError(f"{kind.backend} refuses: {reason}")
    each = moved_bytes(case, pattern.nnz, precision.dtype.itemsize)
    sets = [
        _Call(kind, asked, pattern, Operands.draw(case, precision.dtype, kind.device, seed=seed))
        for seed in range(copies(each, sizes.rotated))
    ]
    wrong = _wrong(sets[0], pattern, case)
    for op in PASSES:
        row: Row = {"who": kind.name, "layer": row_of(case), "nnz": pattern.nnz, "op": op, "precision": precision.name,
                    "device": kind.device, "copies": len(sets), "error": wrong[op]}  # fmt: skip
        if not wrong[op] <= precision.tolerance:
            yield {**row, "wrong": f"relative error {wrong[op]:.1e} against float64 (at most {precision.tolerance:g})",
                   "eager": None, "graph": None}  # fmt: skip
            continue
        calls = [partial(one, op) for one in sets]
        times = measured(calls, repeats=sizes.repeats, cuda=kind.device == "cuda")
        flops = (2.0 if op == "forward" else 4.0) * pattern.nnz * case.batch * case.places
        yield {**row, **times.to_row(), "flops": flops, "bytes": each}


def _wrong(call: "_Call", pattern: Pattern, case: LayerCase) -> dict[str, float]:
    """The largest relative error of each pass."""
    (y,), gradients = (call(op) for op in PASSES)
    found = errors({"forward": y, **dict(zip(OPS[1:], gradients, strict=True))}, call.operands, pattern.mask(), case)
    return {"forward": found["forward"], "backward": max(found[op] for op in OPS[1:])}


class _Call:
    """Both passes of one layer on one set of numbers."""

    def __init__(self, kind: Kind, case: Case, pattern: Pattern, operands: Operands) -> None:
        self._backend, self._case, self._pattern = BACKENDS[kind.backend], case, pattern
        lies = layout_of(self._backend, case)  # as a network of such layers would hand them over
        self.operands = replace(operands, x=lies.of(operands.x), grad=lies.of(operands.grad))
        self._values = pattern.gather(operands.weight).contiguous()

    def __call__(self, op: str) -> tuple[Tensor, ...]:
        """The output, or the gradients of input and values."""
        x, grad, case = self.operands.x, self.operands.grad, self._case
        if op == "forward":
            return (self._backend.forward(x, self._values, self._pattern, None, case),)
        found = self._backend.backward(grad, x, self._values, self._pattern, (True, True), case)
        assert found.x is not None
        assert found.values is not None
        return found.x, found.values
