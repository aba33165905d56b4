"""The runs of one configuration in their folder: begun, or reopened to go on."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fedsparse.errors import FedsparseError
from fedsparse.experiment.config import Config
from fedsparse.experiment.engine import open_engine
from fedsparse.experiment.flower_run import run_on_flower
from fedsparse.experiment.plan import build_plans
from fedsparse.experiment.rundir import create, flat, locked, reopen, write_json
from fedsparse.experiment.summary import summarise
from fedsparse.experiment.trackers import TrackedRun, require, tracked
from fedsparse.federated.loop import Outcome, run_rounds
from fedsparse.federated.plan import Plan
from fedsparse.nn import masks

__all__ = ["OnFailure", "OnRound", "Result", "Rounds", "Session", "ShouldStop", "begin", "continued"]

OnRound = Callable[[Config, Mapping[str, object]], None]
OnFailure = Callable[[Config, FedsparseError], None]
ShouldStop = Callable[[], bool]


class Rounds(Protocol):
    """The rounds of one run in its folder, from its last checkpoint on."""

    def __call__(
        self,
        config: Config,
        plan: Plan,
        folder: Path,
        *,
        on_round: Callable[[Mapping[str, object]], None],
        should_stop: ShouldStop,
    ) -> Outcome: ...


@dataclass(frozen=True, eq=False)
class Result:
    """A run.

    Attributes:
        metrics: one dict a round, the lines of `metrics.jsonl`.
        final: the numbers of `summary.json`: last and best accuracy, total bytes and seconds, peak memory.
        model: the sparse model with the final weights.
        masks: bool mask of dense shape for each pruned weight, by name.
        dir: the run folder.
        stopped: whether it was asked to stop before its last round; `resume(dir)` goes on.
    """

    metrics: list[dict[str, object]]
    final: dict[str, object]
    model: nn.Module
    masks: dict[str, Tensor]
    dir: Path
    stopped: bool


@dataclass(frozen=True, eq=False)
class Session:
    """One run, or all variants of a configuration, with data and models at hand.

    Attributes:
        config: the configuration.
        folder: of the run; of a configuration with variants, the folder that holds theirs.
        plans: what each run needs, in the order of `configs`.
    """

    config: Config
    folder: Path
    plans: tuple[Plan, ...]

    @property
    def configs(self) -> tuple[Config, ...]:
        """The configuration of each run."""
        return runs(self.config)

    def go_on(
        self,
        *,
        on_round: OnRound,
        should_stop: ShouldStop,
        on_failure: OnFailure | None = None,
        rounds: Rounds | None = None,
    ) -> list[Result]:
        """Runs what is not finished, reads what is; a stop leaves the list short or its last run stopped.

        Args:
            on_round: called with each record.
            should_stop: asked after each round.
            on_failure: told of a run that failed; the list lacks it, and the next one is begun. Without it, the error
                ends the session.
            rounds: what runs the rounds; by default what `engine.kind` says.
        """
        results: list[Result] = []
        for config, plan in zip(self.configs, self.plans, strict=True):
            if config is not self.configs[0] and should_stop():
                break
            folder = self._folder(config)
            watch = partial(on_round, config)
            try:
                with locked(folder):
                    done = _finish(config, plan, folder, rounds=rounds, on_round=watch, should_stop=should_stop)
            except FedsparseError as error:
                if on_failure is None:
                    raise
                on_failure(config, error)
            else:
                results.append(done)
        return results

    def _folder(self, config: Config) -> Path:
        """The folder of one run, made or checked."""
        if not self.config.variants:
            return self.folder
        folder = self.folder / config.run.name
        if not folder.exists():
            return create(config.with_out(folder))
        reopen(folder)
        return folder


def runs(config: Config) -> tuple[Config, ...]:
    """The runs that a configuration describes: its variants, or itself."""
    return config.variants or (config,)


def begin(config: Config) -> Session:
    """A session in a new folder; data and models come first, so a bad setting leaves no folder behind."""
    require(name for each in runs(config) for name in each.run.trackers)
    plans = build_plans(runs(config))
    return Session(config, create(config), tuple(plans))


def continued(folder: str | Path) -> Session:
    """The session of an existing folder."""
    config = reopen(folder)
    require(name for each in runs(config) for name in each.run.trackers)
    return Session(config, Path(folder), tuple(build_plans(runs(config))))


def _finish(
    config: Config,
    plan: Plan,
    folder: Path,
    *,
    rounds: Rounds | None,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: ShouldStop,
) -> Result:
    """Goes on from the last checkpoint in the folder, from the start when there is none."""
    rounds = rounds or _ELSEWHERE.get(config.engine.kind, _rounds_here)
    run = TrackedRun(config.run.name, folder, flat(config.resolved()))
    with tracked(config.run.trackers, run) as record:

        def watch(metrics: Mapping[str, object]) -> None:
            record(metrics)
            on_round(metrics)

        outcome = rounds(config, plan, folder, on_round=watch, should_stop=should_stop)
    identity = {"name": config.run.name, "method": config.method.name, "complete": not outcome.stopped}
    final = {**identity, "rounds": config.run.rounds, **summarise(outcome.metrics)}
    write_json(folder / "summary.json", final)
    return Result(outcome.metrics, final, outcome.model, masks(outcome.model), folder, outcome.stopped)


def _rounds_here(
    config: Config,
    plan: Plan,
    folder: Path,
    *,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: ShouldStop,
) -> Outcome:
    """The rounds in this process."""
    with closing(open_engine(config.engine, plan, folder)) as engine:
        return run_rounds(plan, engine, folder=folder, resume=True, on_round=on_round, should_stop=should_stop)


# Engines whose rounds are not in this process.
_ELSEWHERE: dict[str, Rounds] = {"flower": run_on_flower}
