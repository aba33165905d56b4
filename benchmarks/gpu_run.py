"""The GPU protocol in one command: `python -m benchmarks.gpu_run --budget 540 --out run.json`.

    --stages a,b    only these, in the order of the protocol
    --cpu           a dry run with tiny shapes on the CPU; what needs a GPU says `unavailable`

Nothing has to be installed: the build stage compiles the extension into build/gpu, and stages import from there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.protocol import STAGES, select
from benchmarks.gpu.runner import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the protocol; 1 where a stage failed or ran out of time."""
    asked = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run", description=f"Stages: {', '.join(stage.name for stage in STAGES)}."
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything (default: 540)")
    parser.add_argument("--out", type=Path, default=Path("run.json"), help="the record (default: run.json)")
    parser.add_argument("--stages", default="", help="names, separated by commas (default: all)")
    parser.add_argument("--cpu", action="store_true", help="dry run with tiny shapes, without a GPU")
    options = parser.parse_args(asked)
    names = [name for name in options.stages.split(",") if name]
    try:
        select(names)
    except ValueError as error:
        parser.error(str(error))
    if not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.absolute().parent}; make it first")
    record = run(
        options.out,
        budget=options.budget,
        names=names,
        cpu=options.cpu,
        command=asked,
        watch=lambda text: print(text, flush=True),
    )
    for mark in record.marked:
        print(f"MARKED: {mark}", flush=True)
    return int(any(stage.status in ("failed", "timeout") for stage in record.stages))


if __name__ == "__main__":
    sys.exit(main())
