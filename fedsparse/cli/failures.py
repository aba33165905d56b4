"""Errors a user can mend become one message and an exit code, without a traceback."""

import sys
from typing import Any

import click
import typer
from typer.core import TyperGroup

from fedsparse.errors import ConfigError, FedsparseError, InfeasibleDensityError

__all__ = ["FAILED", "MISUSED", "CleanFailures"]

FAILED = 1
MISUSED = 2


class CleanFailures(TyperGroup):
    """The command group; errors of fedsparse end here, others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except FedsparseError as error:
            print(f"fedsparse: {error}", file=sys.stderr)
            wrong_settings = isinstance(error, ConfigError | InfeasibleDensityError)
            raise typer.Exit(MISUSED if wrong_settings else FAILED) from None
