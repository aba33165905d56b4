"""What a report draws of a run: curves over its rounds, and its layers as grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fedsparse.experiment.records import Record, Run

__all__ = ["Curve", "LayerGrid", "accuracy_curves", "final_point", "layer_grid", "turnover"]


@dataclass(frozen=True)
class Curve:
    """Points of one line; `x` and `y` have the same length."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class LayerGrid:
    """The pruned weights of a run over its rounds.

    Attributes:
        layers: names, in the network's order.
        density: kept share, a row a layer and a column a round.
        turnover: changed positions by kept ones, likewise.
    """

    layers: tuple[str, ...]
    density: tuple[tuple[float, ...], ...]
    turnover: tuple[tuple[float, ...], ...]


def accuracy_curves(run: Run) -> dict[str, Curve]:
    """Test accuracy over finished rounds, over bytes of all messages so far, and over client seconds so far.

    A quantity that was unavailable in a round has no sum from there on: its curve ends.
    """
    along = {
        "rounds": [float(record["round"] + 1) for record in run.rounds],
        "bytes": _running([_sum(record, "bytes_down", "bytes_up") for record in run.rounds]),
        "client seconds": _running([record.get("client_seconds") for record in run.rounds]),
    }
    accuracy = [record.get("accuracy") for record in run.rounds]
    return {name: _curve(x, accuracy) for name, x in along.items()}


def final_point(run: Run) -> tuple[float, float] | None:
    """Bytes of all messages and final accuracy; None where either is unavailable."""
    total = _sum(run.summary, "bytes_down", "bytes_up")
    accuracy = run.summary.get("accuracy")
    return None if total is None or accuracy is None else (total, float(accuracy))


def turnover(run: Run) -> Curve:
    """`masks_changed / nnz` of each round; a run that keeps no weight at all has no turnover."""
    rounds = [record for record in run.rounds if record.get("nnz")]
    return Curve(
        tuple(float(record["round"] + 1) for record in rounds),
        tuple(record["masks_changed"] / record["nnz"] for record in rounds),
    )


def layer_grid(run: Run) -> LayerGrid | None:
    """The layers of a run; None where none was ever pruned. A layer without a line in a round was dense there."""
    lines = {(line["layer"], line["round"]): line for line in run.layers()}
    layers = tuple(dict.fromkeys(layer for layer, _ in lines))
    if not layers:
        return None

    def grid(name: str, by: str, absent: float) -> tuple[tuple[float, ...], ...]:
        def value(line: Record | None) -> float:
            return absent if line is None else line[name] / max(line[by], 1)

        rounds = range(len(run.rounds))
        return tuple(tuple(value(lines.get((layer, round))) for round in rounds) for layer in layers)

    return LayerGrid(layers, grid("nnz", "size", 1.0), grid("changed", "nnz", 0.0))


def _sum(record: Record, *names: str) -> float | None:
    values = [record.get(name) for name in names]
    return None if any(value is None for value in values) else float(sum(values))  # type: ignore[arg-type]


def _running(values: Sequence[float | None]) -> list[float]:
    """Sums so far, up to the first value that is missing."""
    known = next((i for i, value in enumerate(values) if value is None), len(values))
    return list(accumulate(float(value) for value in values[:known] if value is not None))


def _curve(x: Sequence[float], y: Sequence[float | None]) -> Curve:
    """The points that have both, one after the other."""
    points = [(a, b) for a, b in zip(x, y, strict=False) if b is not None]
    return Curve(tuple(a for a, _ in points), tuple(b for _, b in points))
