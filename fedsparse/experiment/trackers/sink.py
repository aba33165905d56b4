"""What a tracker is: three methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Sink", "TrackedRun", "numbers", "recall", "remember"]


@dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers see it.

    Attributes:
        name: of the run.
        folder: of the run; a tracker that writes files writes them there.
        settings: every setting by its dotted key.
    """

    name: str
    folder: Path
    settings: Mapping[str, object]


class Sink(Protocol):
    """Receives a run. After a resume the rounds since the last checkpoint come again, under the same numbers."""

    def open(self, run: TrackedRun) -> None:
        """Begins the run, or goes on with one begun before."""
        ...

    def record(self, metrics: Mapping[str, object]) -> None:
        """One line of `metrics.jsonl`; its `round` is the step."""
        ...

    def close(self) -> None:
        """Ends it; called once, also when the run fails."""
        ...


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The quantities of a line that were available, the round left out; truth values are 0 and 1."""
    return {key: float(v) for key, v in metrics.items() if key != "round" and isinstance(v, int | float)}


def remember(run: TrackedRun, tracker: str, identity: str) -> None:
    """Keeps the tracker's name for the run in its folder, for the time it is resumed."""
    (run.folder / f".{tracker}").write_text(identity, encoding="utf-8")


def recall(run: TrackedRun, tracker: str) -> str | None:
    """What was remembered, or None."""
    path = run.folder / f".{tracker}"
    return path.read_text(encoding="utf-8") if path.is_file() else None
