"""The command `fedsparse`."""

import typer

from fedsparse.allocator import keep_freed_memory
from fedsparse.cli import benching, comparing, doctor, flowering, listing, reporting, running
from fedsparse.cli.failures import CleanFailures

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedsparse",
    cls=CleanFailures,
    help="Federated pruning whose savings are measured: run methods, resume and compare them.",
    epilog="Start with: fedsparse run recipes/demo.toml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", epilog=running.RUN_EXAMPLE)(running.run)
app.command("resume", epilog=running.RESUME_EXAMPLE)(running.resume)
app.command("compare", epilog=comparing.EXAMPLE)(comparing.compare)
app.command("report", epilog=reporting.EXAMPLE)(reporting.report)
app.command("list", epilog=listing.EXAMPLE)(listing.show)
app.add_typer(benching.app, name="bench")
app.add_typer(flowering.app, name="flower")
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)


def main() -> None:
    """Entry point of the console script; exits 0 when done, 1 on failure, 2 on bad usage or configuration."""
    keep_freed_memory()
    app(prog_name="fedsparse")
