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

from fedsparse.experiment import Group, Row, over_seeds, read_runs, rows
from fedsparse.experiment.units import byte_text, decimal_text, ratio_text, second_text, spread_text

__all__ = ["EXAMPLE", "compare", "print_comparison"]

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
    seeds: Annotated[
        bool, typer.Option("--over-seeds", help="Only mean and standard error of runs that differ in their seed.")
    ] = False,
    last: Annotated[
        int, typer.Option("--last", min=1, metavar="N", help="Accuracies are means of the last N evaluations.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Compare runs: accuracy, client time, memory and bytes, each next to the dense run's, and over seeds."""
    if as_json:
        runs = read_runs(run_dirs, evaluations=last)
        print(json.dumps([entry.to_json() for entry in (over_seeds(runs) if seeds else rows(runs))], indent=2))
    elif seeds:
        print_groups(over_seeds(read_runs(run_dirs, evaluations=last)))
    else:
        print_comparison(run_dirs, evaluations=last)


def print_comparison(folders: Sequence[Path], *, evaluations: int = 1) -> None:
    """The table of runs, and below it the one over seeds where runs differ in nothing else."""
    runs = read_runs(folders, evaluations=evaluations)
    print_rows(rows(runs))
    groups = over_seeds(runs)
    if any(len(group.seeds) > 1 for group in groups):
        print("\nmean and standard error over seeds")
        print_groups(groups)


def print_rows(lines: Sequence[Row]) -> None:
    """A table on standard output; columns in `x` are relative to the dense run, where there is one."""
    related = any(row.relative for row in lines)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("density", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading, _ in QUANTITIES.values():
        table.add_column(heading, justify="right", no_wrap=True)
        if related:
            table.add_column("", justify="right", no_wrap=True)
    for row in lines:
        table.add_row(*(Text(cell) for cell in _cells(row, related=related)))
    Console(file=sys.stdout, width=WIDEST).print(table)
    for row in lines:
        if row.note:
            print(f"{row.name}: {row.note}")


def print_groups(groups: Sequence[Group]) -> None:
    """A table on standard output, one line for the runs of a group."""
    quantities = {"density": ("density", decimal_text), "accuracy": ("accuracy", decimal_text), **QUANTITIES}
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seeds", *(heading for heading, _ in quantities.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        figures = [spread_text(group.figures[name], text) for name, (_, text) in quantities.items()]
        table.add_row(*(Text(cell) for cell in (group.name, group.method, str(len(group.seeds)), *figures)))
    Console(file=sys.stdout, width=WIDEST).print(table)
    for group in groups:
        for folder, reason in group.left_out.items():
            print(f"{folder}: {reason}")


def _cells(row: Row, *, related: bool) -> list[str]:
    cells = [row.name, row.method, decimal_text(row.density), decimal_text(row.accuracy)]
    for field, (_, text) in QUANTITIES.items():
        cells.append(text(getattr(row, field)))
        if related:
            cells.append(ratio_text(row.relative.get(field)))
    return cells
