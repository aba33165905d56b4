"""What a run leaves behind: one JSON file, complete after every stage."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["FORMAT", "Row", "RunRecord", "StageRecord", "Status", "read", "write"]

FORMAT = 1
# `cut`: left out because time was short. `unavailable`: this machine cannot; the reason says why.
Status = Literal["done", "failed", "timeout", "unavailable", "cut"]
Row = dict[str, Any]


@dataclass(frozen=True)
class StageRecord:
    """One stage.

    Attributes:
        name: as in `protocol.STAGES`.
        status: how it ended.
        reason: why it is not `done`; the end of the traceback where it failed.
        seconds: it took.
        limit: seconds it was given.
        rows: what was found, in the order of measuring; kept when the stage was ended at its limit.
        notes: what was left out inside the stage, and why.
        log: end of what the process printed.
    """

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    log: str = ""


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        started: time of day, UTC, ISO 8601.
        command: arguments of the run.
        budget: seconds allowed for everything.
        cpu: whether this was the dry run, whose figures mean nothing.
        stages: in the order they ran.
        drift: relative change of the first case of each measuring stage, repeated at the end.
        marked: why the figures are not to be trusted; empty where nothing speaks against them.
        format: of this file.
    """

    started: str
    command: list[str]
    budget: float
    cpu: bool
    stages: list[StageRecord] = field(default_factory=list)
    drift: dict[str, float] = field(default_factory=dict)
    marked: list[str] = field(default_factory=list)
    format: int = FORMAT

    def stage(self, name: str) -> StageRecord | None:
        """The stage of that name, or None where it did not run."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def rows(self, name: str) -> list[Row]:
        """Rows of a stage; none where it did not run."""
        stage = self.stage(name)
        return [] if stage is None else stage.rows


def write(record: RunRecord, path: Path) -> None:
    """Replaces the file at once: a run that is killed leaves the record of its last stage whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> RunRecord:
    """The record that `write` wrote.

    Raises:
        ValueError: the file is no record, or of another format.
    """
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no record of format {FORMAT} of benchmarks.gpu_run; measure again")
    stages = [StageRecord(**stage) for stage in content["stages"]]
    return RunRecord(**{**content, "stages": stages})
