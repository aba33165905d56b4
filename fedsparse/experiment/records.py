"""What run folders hold, read back: settings, finished rounds, the layers' masks."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsparse.errors import CheckpointError
from fedsparse.experiment.rundir import read_json
from fedsparse.experiment.summary import summarise

__all__ = ["Record", "Run", "read_runs"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        settings: `resolved.json`.
        rounds: the finished lines of `metrics.jsonl`.
        evaluations: over how many of the last ones the summary takes the mean.
    """

    folder: Path
    settings: Record
    rounds: tuple[Record, ...]
    evaluations: int = 1

    @property
    def name(self) -> str:
        """What the run is called."""
        return str(self.settings["run"]["name"])

    @cached_property
    def summary(self) -> Record:
        """Totals, peaks and last values of the rounds."""
        return summarise(self.rounds, evaluations=self.evaluations)

    @property
    def planned(self) -> int:
        """Rounds asked for."""
        return int(self.settings["run"]["rounds"])

    @property
    def complete(self) -> bool:
        """Whether all planned rounds are done."""
        return len(self.rounds) >= self.planned

    def layers(self) -> list[Record]:
        """The lines of `layers.jsonl` that belong to finished rounds; none for runs without masks.

        Raises:
            CheckpointError: the file is damaged.
        """
        return [line for line in _records(self.folder / "layers.jsonl") if line["round"] < len(self.rounds)]


def read_runs(folders: Iterable[str | Path], *, evaluations: int = 1) -> list[Run]:
    """The runs in these folders, in the order given; the folder of a run with variants stands for all of them.

    Args:
        evaluations: over how many of the last ones summaries take the mean.

    Raises:
        CheckpointError: a folder is not a run folder, or its files are damaged.
    """
    return [_read(folder, evaluations) for given in folders for folder in _expand(Path(given))]


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


def _read(folder: Path, evaluations: int) -> Run:
    return Run(folder, read_json(folder / "resolved.json"), tuple(_records(folder / "metrics.jsonl")), evaluations)


def _records(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a file of records; a run that has not finished a round has none."""
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
