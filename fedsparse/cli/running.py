"""`fedsparse run` and `fedsparse resume`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fedsparse.cli.comparing import print_comparison
from fedsparse.cli.failures import FAILED, is_misuse
from fedsparse.cli.interrupt import StopRequest, stop_requests
from fedsparse.cli.progress import rounds_shown
from fedsparse.errors import FedsparseError
from fedsparse.experiment import Config, Result, load_config
from fedsparse.experiment.session import Session, begin, continued

__all__ = ["RESUME_EXAMPLE", "RUN_EXAMPLE", "resume", "run"]

RUN_EXAMPLE = "Example: fedsparse run recipes/demo.toml --set run.rounds=5 --set method.density=0.05"
RESUME_EXAMPLE = "Example: fedsparse resume runs/demo-1"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to standard error.")]


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file that describes the run.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this variant of CONFIG; may be repeated.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2,...", help="Run every value; repeated, every combination."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="LIST", help="Run every seed of a list such as 0-2,7.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="What runs the clients; same as --set engine.kind=...")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME-N.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the configuration CONFIG; with variants, a grid or several seeds, each of them, and compare them."""
    shortcuts = {"engine.kind": engine, "run.out": out}
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in shortcuts.items() if value is not None]
    checked = load_config(config, [*(settings or []), *overrides], grid=grid or (), seeds=seeds or (), only=only or ())
    with stop_requests() as stop:
        _finish(begin(checked), stop, as_json=as_json)


def resume(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="Folder of a stopped or killed run, or of one with variants."),
    ],
    as_json: AsJson = False,
) -> None:
    """Go on with the run in RUN_DIR from its last checkpoint."""
    with stop_requests() as stop:
        _finish(continued(run_dir), stop, as_json=as_json)


def _finish(session: Session, stop: StopRequest, *, as_json: bool) -> None:
    """Runs a session to its end, or to the first interruption, and prints what came out.

    One of several runs that fails does not keep the others from running.
    """
    failures: dict[str, FedsparseError] = {}
    results = _rounds(session, stop, sys.stderr if as_json else sys.stdout, failures)
    stopped = len(results) + len(failures) < len(session.configs) or any(result.stopped for result in results)
    if as_json:
        runs = [{"dir": str(result.dir), "stopped": result.stopped, "final": result.final} for result in results]
        failed = {name: str(error) for name, error in failures.items()}
        print(json.dumps({"dir": str(session.folder), "stopped": stopped, "failed": failed, "runs": runs}, indent=2))
    elif results:
        print_comparison([session.folder])
        print(f"\nwritten to {session.folder}")
    for name, error in failures.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    if stopped or failures:
        _explain_resume(session, "stopped" if stopped else "failed")
        raise typer.Exit(FAILED)


def _rounds(session: Session, stop: StopRequest, stream: TextIO, failures: dict[str, FedsparseError]) -> list[Result]:
    """Runs a session, showing its rounds on `stream`; says how to go on when it breaks off.

    Of several runs, those that fail are noted in `failures`, by name.
    """

    def note(config: Config, error: FedsparseError) -> None:
        failures[config.run.name] = error

    try:
        with rounds_shown(stream) as watch:
            return session.go_on(
                on_round=watch, should_stop=stop, on_failure=note if len(session.configs) > 1 else None
            )
    except KeyboardInterrupt:
        _explain_resume(session, "aborted")
        raise typer.Exit(FAILED) from None
    except FedsparseError as error:
        if not is_misuse(error):  # settings that cannot work would only fail again
            _explain_resume(session, "failed")
        raise


def _explain_resume(session: Session, how: str) -> None:
    command = shlex.join(["fedsparse", "resume", str(session.folder)])
    print(f"{how}; go on with: {command}", file=sys.stderr)
