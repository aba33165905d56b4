"""Runs of the GPU protocol as Markdown: `python -m benchmarks.gpu_table run.json...`; without runs, the estimates."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.record import read
from benchmarks.gpu.table import markdown

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; 2 where a file is no run."""
    names = sys.argv[1:] if arguments is None else list(arguments)
    try:
        records = [read(Path(name)) for name in names]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(markdown(records), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
