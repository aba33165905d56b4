"""Dense over ours, from the rows of a run: against the best dense variant of a precision, graph to graph."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gpu.cases import COMPARED, COUNTS, OPS, PASSES
from benchmarks.gpu.kinds import Kind
from benchmarks.gpu.record import Row
from benchmarks.gpu.roofline import dense_work, seconds, sizes_of
from benchmarks.gpu.sweep import layer_of
from fedsparse.bench.cases import LayerCase

__all__ = ["Ratio", "Seconds", "best_dense", "estimated", "measured", "network"]

# Seconds by layer (density 1), op and precision.
Seconds = Mapping[tuple[LayerCase, str, str], float]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the best dense variant one kind is.

    Attributes:
        kind: name of the kind.
        layer: in words.
        batch: samples.
        density: kept share.
        precision: of the kind.
        compared: precision of the dense products.
        graph: graph to graph; None where one side has none.
        eager: called from Python on both sides; None in estimates.
        ours: seconds of the kind, as replayed.
        source: `measured` or `estimated`.
    """

    kind: str
    layer: str
    batch: int
    density: float
    precision: str
    compared: str
    graph: float | None
    eager: float | None
    ours: float | None
    source: str


def best_dense(rows: Iterable[Row], how: str) -> dict[tuple[LayerCase, str, str], float]:
    """The fastest median over variants of every layer, op and precision; `how` is `graph` or `eager`."""
    best: dict[tuple[LayerCase, str, str], float] = {}
    for row in rows:
        if row["who"] == "dense" and row.get(how):
            key = layer_of(row["layer"]), row["op"], row["precision"]
            best[key] = min(row[how]["median"], best.get(key, math.inf))
    return best


def measured(dense: Sequence[Row], ours: Sequence[Row]) -> list[Ratio]:
    """A ratio for every layer of `ours` of which all ops were timed, and every precision it is compared with."""
    baselines = {how: best_dense(dense, how) for how in ("graph", "eager")}
    groups: dict[tuple[str, LayerCase, str], dict[str, Row]] = {}
    for row in ours:
        if "layer" in row:
            groups.setdefault((row["who"], layer_of(row["layer"]), row["precision"]), {})[row["op"]] = row
    return [
        _measured(kind, case, precision, compared, ops, baselines)
        for (kind, case, precision), ops in groups.items()
        for compared in COMPARED[precision]
    ]


def _measured(
    kind: str, case: LayerCase, precision: str, compared: str, ops: Mapping[str, Row], baselines: Mapping[str, Seconds]
) -> Ratio:
    mine = {how: _sum(_median(ops.get(op), how) for op in PASSES) for how in baselines}
    theirs = {
        how: _sum(found.get((replace(case, density=1.0), op, compared)) for op in OPS)
        for how, found in baselines.items()
    }
    ratio = {how: _over(theirs[how], mine[how]) for how in baselines}
    return Ratio(
        kind, case.shape, case.batch, case.density, precision, compared, ratio["graph"], ratio["eager"], mine["graph"],
        "measured",
    )  # fmt: skip


def estimated(kind: Kind, cases: Iterable[LayerCase], densities: Iterable[float]) -> list[Ratio]:
    """The same from the roofline model; nothing for a kind whose work nobody has counted."""
    if kind.work is None:
        return []
    return [
        _estimated(kind, replace(case, density=density), precision, compared)
        for density in densities
        for case in cases
        for precision in kind.precisions
        for compared in COMPARED[precision]
    ]


def _estimated(kind: Kind, case: LayerCase, precision: str, compared: str) -> Ratio:
    assert kind.work is not None
    nnz = round(case.density * sizes_of(case)[2])
    mine = sum(seconds(kind.work(case, op, nnz, precision)) for op in PASSES)
    theirs = sum(seconds(dense_work(case, op, compared)) for op in OPS)
    return Ratio(
        kind.name, case.shape, case.batch, case.density, precision, compared, theirs / mine, None, mine, "estimated"
    )


# ---- all layers of a network together
def network(ratios: Iterable[Ratio]) -> list[Ratio]:
    """ResNet-18's convolutions but the first as one: seconds add up, each as often as the layer occurs.

    A group that lacks a layer is left out.
    """
    groups: dict[tuple[Any, ...], dict[str, Ratio]] = {}
    for one in ratios:
        key = (one.kind, one.batch, one.density, one.precision, one.compared, one.source)
        groups.setdefault(key, {})[one.layer] = one
    whole = (_network(key, layers) for key, layers in groups.items() if COUNTS.keys() <= layers.keys())
    return [one for one in whole if one.ours is not None]


def _network(key: tuple[Any, ...], layers: Mapping[str, Ratio]) -> Ratio:
    kind, batch, density, precision, compared, source = key
    ours = _sum(_times(layers[name].ours, count) for name, count in COUNTS.items())
    dense = _sum(_times(_product(layers[name].ours, layers[name].graph), count) for name, count in COUNTS.items())
    return Ratio(
        kind, "ResNet-18's convolutions", batch, density, precision, compared, _over(dense, ours), None, ours, source
    )


def _median(row: Row | None, how: str) -> float | None:
    return row[how]["median"] if row is not None and row.get(how) else None


def _sum(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    return None if any(part is None for part in found) else math.fsum(part for part in found if part is not None)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _times(a: float | None, count: int) -> float | None:
    return None if a is None else a * count


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b
