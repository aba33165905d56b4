"""Goes through cases until the time is over, and says which were not reached."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.gpu.context import Context
from benchmarks.gpu.record import Row
from fedsparse.bench.cases import LayerCase

__all__ = ["Job", "layer_of", "row_of", "sweep"]


class Job(NamedTuple):
    """Something to measure.

    Attributes:
        name: in words.
        rows: measures it.
        needs: seconds without which it is not begun.
    """

    name: str
    rows: Callable[[], Iterable[Row]]
    needs: float = 1.0


def sweep(context: Context, jobs: Iterable[Job]) -> None:
    """Runs the jobs in order; one that fails is noted, and those that time did not allow are counted.

    Raises:
        RuntimeError: jobs failed, and none gave a row.
    """
    left_out: list[str] = []
    failed: list[str] = []
    first = True
    for name, rows, needs in jobs:
        if context.left() < needs:
            left_out.append(name)
            continue
        try:
            for row in rows():
                context.row({**row, "repeat": first})
                first = False
        except Exception as error:  # one case less is no reason to lose the others
            failed.append(f"{name}: {type(error).__name__}: {error}"[:600])
            context.note(failed[-1])
    if left_out:
        context.note(f"{len(left_out)} cases were not reached in time, from {left_out[0]} to {left_out[-1]}")
    if failed and first:
        raise RuntimeError(f"no case could be measured; the first of {len(failed)} that failed: {failed[0]}")


def row_of(case: LayerCase) -> Row:
    """A layer as records hold it."""
    return {"inputs": case.inputs, "outputs": case.outputs, "size": case.size, "kernel": case.kernel,
            "stride": case.stride, "batch": case.batch, "density": case.density}  # fmt: skip


def layer_of(row: dict[str, Any]) -> LayerCase:
    """The layer that `row_of` wrote."""
    return LayerCase(**row)
