"""Runs a configuration, and goes on with a run that was stopped."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedsparse.errors import CheckpointError, ConfigError
from fedsparse.experiment.config import Config
from fedsparse.experiment.session import Result, ShouldStop, begin, continued

__all__ = ["Result", "resume", "resume_variants", "run", "run_variants"]

Watch = Callable[[Mapping[str, object]], None]


def run(config: Config, *, on_round: Watch | None = None, should_stop: ShouldStop | None = None) -> Result:
    """Runs a configuration in a new folder.

    Args:
        config: of a single run; `run_variants` takes one with variants.
        on_round: called with each line of `metrics.jsonl`.
        should_stop: asked after each round; when true, the run writes a checkpoint and returns.

    Raises:
        ConfigError: a setting does not fit the data or this machine.
        DataError: the data cannot be read or dealt.
        ClientError: too few clients delivered; the run can be resumed.
        CheckpointError: the folder cannot be written.
    """
    if config.variants:
        raise ConfigError(
            f"the configuration describes {len(config.variants)} variants, expected a single run; "
            "use fedsparse.experiment.run_variants, or run one of config.variants"
        )
    session = begin(config)
    return session.go_on(on_round=_watching(on_round), should_stop=should_stop or _never)[0]


def resume(folder: str | Path, *, on_round: Watch | None = None, should_stop: ShouldStop | None = None) -> Result:
    """Goes on with a stopped or killed run from its last checkpoint; a finished run is only read.

    All metrics except times and memory are those of a run that was never stopped.

    Raises:
        CheckpointError: no run folder, its settings were changed, or no checkpoint in it can be read.
    """
    session = continued(folder)
    if session.config.variants:
        raise CheckpointError(
            f"{folder}: holds {len(session.configs)} variants, expected a single run; "
            "use fedsparse.experiment.resume_variants, or resume one of its subfolders"
        )
    return session.go_on(on_round=_watching(on_round), should_stop=should_stop or _never)[0]


def run_variants(
    config: Config, *, on_round: Watch | None = None, should_stop: ShouldStop | None = None
) -> list[Result]:
    """Runs the variants of a configuration one after the other, each in a subfolder of one new folder.

    Settings of all variants are checked before the first starts. A stop leaves the list shorter than the
    variants, or its last result stopped. Arguments and errors are those of `run`.
    """
    if not config.variants:
        raise ConfigError("the configuration has no [[variants]]; use fedsparse.run(config)")
    return begin(config).go_on(on_round=_watching(on_round), should_stop=should_stop or _never)


def resume_variants(
    folder: str | Path, *, on_round: Watch | None = None, should_stop: ShouldStop | None = None
) -> list[Result]:
    """Goes on where `run_variants` was stopped: finished variants are read, the others resumed or started.

    Raises:
        CheckpointError: no folder of variants, or its settings were changed.
    """
    session = continued(folder)
    if not session.config.variants:
        raise CheckpointError(f"{folder}: a single run; use fedsparse.resume({str(folder)!r})")
    return session.go_on(on_round=_watching(on_round), should_stop=should_stop or _never)


def _watching(on_round: Watch | None) -> Callable[[Config, Mapping[str, object]], None]:
    """What a session calls: it names the run as well, which a watcher of one run knows."""

    def watch(_: Config, record: Mapping[str, object]) -> None:
        if on_round is not None:
            on_round(record)

    return watch


def _never() -> bool:
    return False
