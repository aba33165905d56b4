"""Runs that differ in their seed alone, as one: mean and standard error of every quantity."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedsparse.experiment.records import Run

__all__ = ["Group", "Spread", "over_seeds"]

QUANTITIES = ("density", "accuracy", "client_seconds", "peak_bytes", "bytes_down", "bytes_up")
# Settings that say which of several equal runs one is, or where things lie.
APART = {"run": {"seed", "name", "out", "trackers"}, "data": {"root"}}


@dataclass(frozen=True)
class Spread:
    """Mean of a quantity over seeds.

    Attributes:
        mean: over all seeds of the group.
        error: standard error of the mean, s / sqrt(n) with s from n - 1 degrees of freedom; None for one seed.
    """

    mean: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs with equal settings and different seeds.

    Attributes:
        name: of the runs, without the seed.
        method: of the runs.
        seeds: whose runs are in the figures.
        figures: by the names of a comparison's row; None where a run lacks the quantity, never the mean of a part.
        left_out: runs that are not in the figures, each with the reason.
    """

    name: str
    method: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Spread | None]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """The group as a JSON object."""
        return asdict(self)


def over_seeds(runs: Sequence[Run]) -> list[Group]:
    """The groups, in the order of their first runs. Incomplete runs and second runs of a seed are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    return [_group(members) for members in groups.values()]


def _identity(run: Run) -> str:
    kept = {
        table: {key: value for key, value in settings.items() if key not in APART.get(table, ())}
        for table, settings in run.settings.items()
    }
    return json.dumps(kept, sort_keys=True)


def _group(runs: Sequence[Run]) -> Group:
    counted: dict[int, Run] = {}
    left_out: dict[str, str] = {}
    for run in runs:
        seed = _seed(run)
        if not run.complete:
            left_out[str(run.folder)] = f"incomplete: {len(run.rounds)} of {run.planned} rounds"
        elif seed in counted:
            left_out[str(run.folder)] = f"seed {seed} is in the figures already"
        else:
            counted[seed] = run
    return Group(
        name=runs[0].name.removesuffix(f"_seed-{_seed(runs[0])}"),
        method=runs[0].settings["method"]["name"],
        seeds=tuple(counted),
        figures={name: _spread([run.summary.get(name) for run in counted.values()]) for name in QUANTITIES},
        left_out=left_out,
    )


def _seed(run: Run) -> int:
    return int(run.settings["run"].get("seed", 0))


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Spread(statistics.fmean(known), error)
