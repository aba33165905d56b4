"""One stage in a process of its own: `python -m benchmarks.gpu.worker STAGE --limit S --lines FILE [--cpu]`."""

import argparse
import importlib
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.protocol import STAGES

__all__ = ["main"]

_LINES = 30  # of a traceback that are kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stage and writes down how it ended; an error is a finding, so the process ends with 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.worker")
    parser.add_argument("stage", choices=[stage.name for stage in STAGES])
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args(arguments)
    context = Context(asked.limit, asked.cpu, asked.lines, asked.lines.parent, began=time.monotonic())
    try:
        importlib.import_module(f"benchmarks.gpu.stages.{asked.stage}").run(context)
    except Unavailable as error:
        context.ended("unavailable", str(error))
    except Exception:  # whatever it is, the run goes on with the next stage
        text = traceback.format_exc()
        print(text)
        context.ended("failed", "\n".join(text.strip().splitlines()[-_LINES:]))
    else:
        context.ended("done")


if __name__ == "__main__":
    main()
