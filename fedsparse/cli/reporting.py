"""`fedsparse report`: runs as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from fedsparse.experiment.report import write_report

__all__ = ["EXAMPLE", "report"]

EXAMPLE = "Example: fedsparse report runs/demo-1 -o demo.html"


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of runs, or of runs with variants.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The file; default report.html in the one RUN_DIR."),
    ] = None,
) -> None:
    """Draw runs in one HTML file that needs no network: accuracy, bytes, seconds, Pareto front, layers."""
    print(f"written to {write_report(run_dirs, out)}")
