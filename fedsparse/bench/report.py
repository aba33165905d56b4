"""What a benchmark found: numbers for JSON with where they come from, and the same as tables of text."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsparse.errors import ConfigError
from fedsparse.experiment.environment import environment

__all__ = [
    "Report",
    "TextTable",
    "Watch",
    "check_target",
    "milliseconds",
    "percent",
    "provenance",
    "times_faster",
]

Watch = Callable[[str], None]  # told in a few words what was measured last
MISSING = "-"


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of cells; the first column is text, the others are numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """One benchmark.

    Attributes:
        benchmark: its name.
        provenance: machine, versions, threads and how was measured.
        settings: what was asked for.
        peers: what fedsparse is compared with; `unavailable` says why one is left out.
        rows: one object a case, in seconds, bytes and ratios.
        summary: numbers over several cases, by name.
        remarks: what else was left out, and why.
        tables: rows and summary for people.
    """

    benchmark: str
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    peers: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    tables: Sequence[TextTable] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the tables."""
        return {
            "benchmark": self.benchmark,
            "provenance": dict(self.provenance),
            "settings": dict(self.settings),
            "peers": [dict(peer) for peer in self.peers],
            "rows": [dict(row) for row in self.rows],
            **self.summary,
            "remarks": list(self.remarks),
        }

    def notes(self) -> list[str]:
        """A sentence for each peer that is left out, and the remarks."""
        missing = [f"{peer['name']}: left out, {peer['unavailable']}" for peer in self.peers if peer["unavailable"]]
        return [*missing, *self.remarks]

    def write(self, path: Path) -> None:
        """Writes the JSON form to `path`."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def provenance(measured: str, **more: object) -> dict[str, object]:
    """The machine now, how was measured, and more."""
    return environment() | {"measured": measured} | more


def check_target(path: Path) -> None:
    """Says before hours of measuring that there is no place for the results.

    Raises:
        ConfigError: the folder of `path` is missing, or `path` is a folder.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it, for example {path / 'bench.json'}")


def milliseconds(seconds: float | None) -> str:
    """Seconds as a number of milliseconds."""
    return MISSING if seconds is None else f"{1e3 * seconds:.3f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def times_faster(ratio: float | None) -> str:
    """A peer's time over fedsparse's: `3.31x`."""
    return MISSING if ratio is None else f"{ratio:.2f}x"


def percent(share: float | None) -> str:
    """A share of the whole."""
    return MISSING if share is None else f"{100 * share:.1f} %"
