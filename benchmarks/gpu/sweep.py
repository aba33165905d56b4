"""Goes through cases until the time is over, and says which were not reached."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.record import Row
from fedsparse.bench.cases import LayerCase

__all__ = ["Job", "layer_of", "row_of", "sweep"]

# What to measure, in words, and how; a job gives its rows.
Job = tuple[str, Callable[[], Iterable[Row]]]
_RESERVE = 1.0  # seconds; a job takes less


def sweep(context: Context, jobs: Iterable[Job]) -> None:
    """Runs the jobs in order; one that fails is noted, and those that time did not allow are counted."""
    left_out: list[str] = []
    first = True
    for name, job in jobs:
        if context.left() < _RESERVE:
            left_out.append(name)
            continue
        try:
            for row in job():
                context.row({**row, "repeat": first})
                first = False
        except Exception as error:  # one case less is no reason to lose the others
            context.note(f"{name}: {type(error).__name__}: {error}"[:600])
    if left_out:
        context.note(f"{len(left_out)} cases were not reached in time, from {left_out[0]} to {left_out[-1]}")


def row_of(case: LayerCase) -> Row:
    """A layer as records hold it."""
    return {"inputs": case.inputs, "outputs": case.outputs, "size": case.size, "kernel": case.kernel,
            "stride": case.stride, "batch": case.batch, "density": case.density}  # fmt: skip


def layer_of(row: dict[str, Any]) -> LayerCase:
    """The layer that `row_of` wrote."""
    return LayerCase(**row)
