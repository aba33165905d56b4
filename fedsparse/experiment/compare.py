"""Runs side by side, each measured against the dense one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsparse.errors import CheckpointError
from fedsparse.experiment.rundir import read_json
from fedsparse.experiment.summary import summarise

__all__ = ["Row", "compare"]

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
        accuracy: on the test set, at the last evaluation.
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


@dataclass(frozen=True)
class Run:
    """What a comparison reads from one run folder."""

    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    rounds: int

    @property
    def planned(self) -> int:
        return int(self.settings["run"]["rounds"])

    @property
    def complete(self) -> bool:
        return self.rounds >= self.planned


def compare(folders: Iterable[str | Path]) -> list[Row]:
    """One row a run, in the order given; the folder of a run with variants stands for all of them.

    The measure of all others is the first complete run of method `fedavg` that nothing was pruned from.

    Raises:
        CheckpointError: a folder is not a run folder, or its files are damaged.
    """
    runs = [_read(folder) for given in folders for folder in _expand(Path(given))]
    dense = next((run for run in runs if run.complete and _is_dense(run)), None)
    return [_row(run, dense) for run in runs]


def _expand(folder: Path) -> list[Path]:
    """The run folders that a folder stands for."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give folders of runs, for example runs/demo-1")
    variants = read_json(folder / "resolved.json").get("variants")
    if variants is None:
        return [folder]
    present = [folder / name for name in variants if (folder / name).is_dir()]
    if not present:
        raise CheckpointError(f"{folder}: none of its variants has started; continue with `fedsparse resume {folder}`")
    return present


def _read(folder: Path) -> Run:
    settings = read_json(folder / "resolved.json")
    records = _records(folder / "metrics.jsonl")
    return Run(folder, settings, summarise(records), len(records))


def _records(path: Path) -> list[dict[str, Any]]:
    """The finished lines of `metrics.jsonl`; a run that has not finished a round has none."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last line end was cut off
    return [_record(line, path, number) for number, line in enumerate(lines, start=1)]


def _record(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CheckpointError(
            f"{path}, line {number}: not JSON ({error}); the file was changed after the run wrote it, "
            f"continue with `fedsparse resume {path.parent}` or leave this run out"
        ) from error
    if not (isinstance(record, dict) and isinstance(record.get("round"), int)):
        raise CheckpointError(f"{path}, line {number}: expected an object with a round, found {line[:60]!r}")
    return record


def _is_dense(run: Run) -> bool:
    return bool(run.settings["method"]["name"] == "fedavg" and run.summary["density"] == 1.0)


def _row(run: Run, dense: Run | None) -> Row:
    note = _obstacle(run, dense)
    quantities = {name: run.summary.get(name) for name in ("density", "accuracy", *RELATED)}
    return Row(
        name=run.settings["run"]["name"],
        method=run.settings["method"]["name"],
        folder=str(run.folder),
        rounds=run.rounds,
        planned=run.planned,
        **quantities,
        relative={} if note or dense is None else _relative(run.summary, dense.summary),
        note=note,
    )


def _obstacle(run: Run, dense: Run | None) -> str:
    """Why a run cannot be measured against the dense one; empty when it can, or when there is none."""
    if not run.complete:
        return f"incomplete: {run.rounds} of {run.planned} rounds"
    if dense is None:
        return ""
    differing = [key for key in _task_keys(run, dense) if _setting(run, key) != _setting(dense, key)]
    return f"not comparable with {dense.settings['run']['name']}: {', '.join(differing)} differ" if differing else ""


def _task_keys(run: Run, dense: Run) -> Sequence[str]:
    tables = [f"{t}.{key}" for t in SAME_TASK for key in {**dense.settings[t], **run.settings[t]} if key != "root"]
    return [*tables, *SAME_WORK]


def _setting(run: Run, key: str) -> object:
    table, _, name = key.partition(".")
    value: object = run.settings[table].get(name)
    return value


def _relative(summary: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, float]:
    return {name: summary[name] / dense[name] for name in RELATED if summary.get(name) is not None and dense.get(name)}
