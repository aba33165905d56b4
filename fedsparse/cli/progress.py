"""The rounds of a run as they finish: a bar on a terminal, a line a round elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedsparse.experiment import Config
from fedsparse.experiment.units import byte_text, decimal_text, second_text

__all__ = ["rounds_shown"]

Watch = Callable[[Config, Mapping[str, Any]], None]


@contextmanager
def rounds_shown(stream: TextIO) -> Iterator[Watch]:
    """Gives a function that shows one finished round of a run on `stream`."""
    console = Console(file=stream)
    if console.is_terminal:
        with _bars(console) as progress:
            yield Bars(progress)
    else:
        yield lambda config, record: print(f"{_place(config, record)}  {_numbers(record)}", file=stream, flush=True)


class Bars:
    """One bar a run."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, Any] = {}

    def __call__(self, config: Config, record: Mapping[str, Any]) -> None:
        """Moves the bar of a run to its newest round."""
        name = config.run.name
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=config.run.rounds, numbers="")
        self._progress.update(self._bars[name], completed=record["round"] + 1, numbers=_numbers(record))


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=console,
    )


def _place(config: Config, record: Mapping[str, Any]) -> str:
    return f"{config.run.name}  round {record['round'] + 1}/{config.run.rounds}"


def _numbers(record: Mapping[str, Any]) -> str:
    parts = {
        "accuracy": decimal_text(record.get("accuracy")),
        "density": decimal_text(record.get("density")),
        "down": byte_text(record.get("bytes_down")),
        "up": byte_text(record.get("bytes_up")),
        "clients": second_text(record.get("client_seconds")),
        "peak": byte_text(record.get("peak_bytes")),
    }
    return "  ".join(f"{name} {text}" for name, text in parts.items() if text != "-")
