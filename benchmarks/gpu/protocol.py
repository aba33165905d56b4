"""The stages of a run, how long each may take, and what is left out when time is short."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["STAGES", "Plan", "Stage", "plan", "select"]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: also of its module in `benchmarks.gpu.stages`.
        limit: seconds it is given.
        cut: place in the order in which stages are left out when time is short; 0 is never.
        shrinks: whether it may be given less time, and then measures fewer cases.
        patience: seconds beyond the limit before its process is ended, for what nothing else works without.
    """

    name: str
    limit: float
    cut: int = 0
    shrinks: bool = False
    patience: float = 10.0


# Order is that of running. `drift` repeats the first case of every stage that measured.
STAGES: tuple[Stage, ...] = (
    Stage("provenance", 5, patience=40),  # the first import of torch reads gigabytes
    Stage("build", 75, patience=90),
    Stage("tests", 90, patience=30),
    Stage("sanitize", 45, cut=2),
    Stage("ceilings", 25, patience=20),
    Stage("dense", 85, shrinks=True),
    Stage("ours", 105, shrinks=True),
    Stage("step", 60, shrinks=True),
    Stage("counters", 40, cut=1),
    Stage("drift", 10, patience=15),
)
_LEAST = 10.0  # seconds; with less than this a stage that shrinks is left out


@dataclass(frozen=True)
class Plan:
    """What becomes of a stage: seconds for it, or why it is left out."""

    stage: Stage
    seconds: float
    cut: str = ""


def select(names: Sequence[str]) -> tuple[Stage, ...]:
    """Stages of these names, in the order of the protocol; all of them where none is named.

    Raises:
        ValueError: a name that is no stage.
    """
    known = {stage.name for stage in STAGES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no stage {unknown[0]!r}; the stages are {', '.join(stage.name for stage in STAGES)}")
    return tuple(stage for stage in STAGES if not names or stage.name in names)


def plan(stages: Sequence[Stage], left: float) -> list[Plan]:
    """Divides the `left` seconds: first what may be left out goes, then measuring stages share what remains, in a long
    run of few stages more than their limits.

    Provenance, build, tests, ceilings and drift always get their limits, whether or not that fits.
    """
    kept = list(stages)
    gone: set[str] = set()
    for stage in sorted((stage for stage in stages if stage.cut), key=lambda stage: stage.cut):
        if sum(one.limit for one in kept) > left:
            kept.remove(stage)
            gone.add(stage.name)
    wanted = sum(stage.limit for stage in kept if stage.shrinks)
    fixed = sum(stage.limit for stage in kept if not stage.shrinks)
    share = max(0.0, left - fixed) / wanted if wanted else 1.0
    return [_planned(stage, stage.name in gone, share, left) for stage in stages]


def _planned(stage: Stage, gone: bool, share: float, left: float) -> Plan:
    seconds = stage.limit * share if stage.shrinks else stage.limit
    if gone or (stage.shrinks and seconds < min(_LEAST, stage.limit)):
        return Plan(stage, 0.0, f"{max(left, 0):.0f} s were left for this and the stages after it")
    return Plan(stage, seconds)
