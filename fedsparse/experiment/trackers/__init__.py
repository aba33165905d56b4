"""Trackers that a run can report to: off unless `[run] trackers` names them, each an extra of its own."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from fedsparse.errors import MissingExtraError
from fedsparse.experiment.trackers.sink import Sink, TrackedRun

__all__ = ["Sink", "TrackedRun", "require", "tracked", "trackers"]

# Its module here, whose class `Tracker` is the sink, has the name of the tracker and of the extra.
_NAMES = ("mlflow", "tensorboard", "wandb")


def trackers() -> list[str]:
    """What `[run] trackers` may name."""
    return list(_NAMES)


def require(names: Iterable[str]) -> None:
    """Imports what the trackers need.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for name in names:
        _kind(name)


@contextmanager
def tracked(names: Sequence[str], run: TrackedRun) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Gives a function that hands one line of `metrics.jsonl` to each tracker; closes them at the end.

    A tracker that fails after it was opened is left out from then on, with a warning: the run's own files have every
    number, and a lost connection must not end hours of training.
    """
    with ExitStack() as stack:
        sinks = {}
        for name in names:
            sinks[name] = _kind(name)()
            sinks[name].open(run)
            stack.callback(_guarded, sinks, name, sinks[name].close)

        def record(metrics: Mapping[str, object]) -> None:
            for name in list(sinks):
                _guarded(sinks, name, partial(sinks[name].record, metrics))

        yield record


def _kind(name: str) -> Callable[[], Sink]:
    try:
        module = importlib.import_module(f"fedsparse.experiment.trackers.{name}")
    except ImportError as error:
        raise MissingExtraError(
            f"run.trackers: {name} is not installed ({error}): pip install 'fedsparse[{name}]'"
        ) from error
    kind: Callable[[], Sink] = module.Tracker
    return kind


def _guarded(sinks: dict[str, Sink], name: str, act: Callable[[], None]) -> None:
    """Acts, unless the sink has failed before."""
    if name not in sinks:
        return
    try:
        act()
    except Exception as error:  # whatever the package of another may raise
        del sinks[name]
        warnings.warn(f"tracker {name} is left out from here on: {type(error).__name__}: {error}", stacklevel=4)
