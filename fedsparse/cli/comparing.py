"""`fedsparse compare`: runs side by side."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsparse.cli.units import byte_text, decimal_text, ratio_text, second_text
from fedsparse.experiment import Row
from fedsparse.experiment import compare as compare_runs

__all__ = ["EXAMPLE", "compare", "print_rows"]

EXAMPLE = "Example: fedsparse compare runs/demo-1 runs/fashion-2/dense"
QUANTITIES = {
    "client_seconds": ("client time", second_text),
    "peak_bytes": ("peak memory", byte_text),
    "bytes_down": ("down", byte_text),
    "bytes_up": ("up", byte_text),
}
# In characters; the table takes what it needs. Lines that a narrow terminal folds beat numbers cut off.
WIDEST = 200


def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, or of runs with variants.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Compare runs: accuracy, client time, memory and bytes, each next to the dense run's."""
    rows = compare_runs(run_dirs)
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=2))
    else:
        print_rows(rows)


def print_rows(rows: Sequence[Row]) -> None:
    """A table on standard output; columns in `x` are relative to the dense run, where there is one."""
    related = any(row.relative for row in rows)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("density", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading, _ in QUANTITIES.values():
        table.add_column(heading, justify="right", no_wrap=True)
        if related:
            table.add_column("", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row, related=related)))
    Console(file=sys.stdout, width=WIDEST).print(table)
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")


def _cells(row: Row, *, related: bool) -> list[str]:
    cells = [row.name, row.method, decimal_text(row.density), decimal_text(row.accuracy)]
    for field, (_, text) in QUANTITIES.items():
        cells.append(text(getattr(row, field)))
        if related:
            cells.append(ratio_text(row.relative.get(field)))
    return cells
