"""Errors a user can mend become one message and an exit code, without a traceback."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from fedsparse.errors import ConfigError, FedsparseError, InfeasibleDensityError

__all__ = ["FAILED", "MISUSED", "CleanFailures", "is_misuse"]

FAILED = 1
MISUSED = 2


class CleanFailures(TyperGroup):
    """The command group; errors of fedsparse end here, others keep their traceback."""

    # Any, because click's Context comes from another package from one typer to the next.
    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except FedsparseError as error:
            print(f"fedsparse: {error}", file=sys.stderr)
            raise typer.Exit(MISUSED if is_misuse(error) else FAILED) from None


def is_misuse(error: FedsparseError) -> bool:
    """Whether the settings are to blame, so that the same command can only fail again."""
    return isinstance(error, ConfigError | InfeasibleDensityError)
