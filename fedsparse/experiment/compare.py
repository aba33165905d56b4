"""Runs side by side, each measured against the dense one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsparse.experiment.records import Run, read_runs

__all__ = ["Row", "compare", "rows"]

# Quantities that are set in relation to the dense run, by the name of the row's field.
RELATED = ("client_seconds", "peak_bytes", "bytes_down", "bytes_up")
# Tables and keys that must agree before one run may be measured against another.
SAME_TASK = ("data", "model")
SAME_WORK = ("run.rounds", "client.per_round", "client.epochs", "client.batch_size")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run of a comparison. A quantity that was not available is None.

    Attributes:
        name, method, folder: which run.
        rounds, planned: finished rounds and rounds asked for; a run with fewer than planned is incomplete.
        density: kept share of all trainable weights at the end.
        accuracy: on the test set, mean over the last evaluations, as many as were asked for.
        client_seconds: time inside client training, all clients and rounds.
        peak_bytes: largest memory a client needed in training.
        bytes_down, bytes_up: lengths of all messages from and to the server.
        relative: each of the last four as a share of the dense run's; empty without a comparable dense run.
        note: why there is nothing relative, or what is missing; else empty.
    """

    name: str
    method: str
    folder: str
    rounds: int
    planned: int
    density: float | None
    accuracy: float | None
    client_seconds: float | None
    peak_bytes: int | None
    bytes_down: int | None
    bytes_up: int | None
    relative: Mapping[str, float]
    note: str

    @property
    def complete(self) -> bool:
        """Whether all planned rounds are done."""
        return self.rounds >= self.planned

    def to_json(self) -> dict[str, object]:
        """The row as a JSON object."""
        return {**asdict(self), "complete": self.complete}


def compare(folders: Iterable[str | Path], *, evaluations: int = 1) -> list[Row]:
    """One row a run, in the order given; the folder of a run with variants stands for all of them.

    The measure of a run is the complete run of method `fedavg` with its seed that nothing was pruned from, else the
    first of any seed.

    Args:
        evaluations: over how many of the last ones accuracies are the mean.

    Raises:
        CheckpointError: a folder is not a run folder, or its files are damaged.
    """
    return rows(read_runs(folders, evaluations=evaluations))


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row a run, as `compare`."""
    dense = [run for run in runs if run.complete and _is_dense(run)]
    return [_row(run, _measure_of(run, dense)) for run in runs]


def _measure_of(run: Run, dense: Sequence[Run]) -> Run | None:
    """The dense run of the same seed, else the first."""
    same = (other for other in dense if _setting(other, "run.seed") == _setting(run, "run.seed"))
    return next(same, dense[0] if dense else None)


def _is_dense(run: Run) -> bool:
    return bool(run.settings["method"]["name"] == "fedavg" and run.summary["density"] == 1.0)


def _row(run: Run, dense: Run | None) -> Row:
    note = _obstacle(run, dense)
    quantities = {name: run.summary.get(name) for name in ("density", "accuracy", *RELATED)}
    return Row(
        name=run.name,
        method=run.settings["method"]["name"],
        folder=str(run.folder),
        rounds=len(run.rounds),
        planned=run.planned,
        **quantities,
        relative={} if note or dense is None else _relative(run.summary, dense.summary),
        note=note,
    )


def _obstacle(run: Run, dense: Run | None) -> str:
    """Why a run cannot be measured against the dense one; empty when it can, or when there is none."""
    if not run.complete:
        return f"incomplete: {len(run.rounds)} of {run.planned} rounds"
    if dense is None:
        return ""
    differing = [key for key in _task_keys(run, dense) if _setting(run, key) != _setting(dense, key)]
    return f"not comparable with {dense.name}: {', '.join(differing)} differ" if differing else ""


def _task_keys(run: Run, dense: Run) -> Sequence[str]:
    tables = [f"{t}.{key}" for t in SAME_TASK for key in {**dense.settings[t], **run.settings[t]} if key != "root"]
    return [*tables, *SAME_WORK]


def _setting(run: Run, key: str) -> object:
    table, _, name = key.partition(".")
    value: object = run.settings[table].get(name)
    return value


def _relative(summary: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    return {name: summary[name] / dense[name] for name in RELATED if summary.get(name) is not None and dense.get(name)}
