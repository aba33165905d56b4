"""`fedsparse bench`: this machine's figures, against the engines it is compared with."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsparse.bench import kernels as of_kernels
from fedsparse.bench import payload as of_payload
from fedsparse.bench import round as of_round
from fedsparse.bench import step as of_step
from fedsparse.bench.report import Report, TextTable, Watch, check_target

__all__ = ["EXAMPLE", "app"]

EXAMPLE = "Example: fedsparse bench kernels --density 0.1 --density 0.01 --out kernels.json"
STEP_EXAMPLE = "Example: fedsparse bench step --batch 32 --density 0.1 --threads 2"
PAYLOAD_EXAMPLE = "Example: fedsparse bench payload --json"
ROUND_EXAMPLE = "Example: fedsparse bench round --clients 100 --clients 1000 --per-round 100 --engine process"
# In characters; the table takes what it needs. Lines that a narrow terminal folds beat numbers cut off.
WIDEST = 250

Density = Annotated[list[float] | None, typer.Option("--density", help="Kept share of the weights; may be repeated.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples; default 64.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Turns of every engine that are counted.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few cases and rounds: seconds, and figures that say little.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of every engine; default as torch has them.")]
Isa = Annotated[str | None, typer.Option(help="Instruction set of the kernels; default the best.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to standard error.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON to this file as well.")]

app = typer.Typer(
    help="Measure kernels, training steps and messages against torch and other sparse engines, and federated rounds.",
    epilog=EXAMPLE,
    no_args_is_help=True,
)


@app.command("kernels", epilog=EXAMPLE)
def kernels(
    density: Density = None,
    granularity: Annotated[
        str | None, typer.Option(help="Units that are kept: element (default), vector:G, block:B or channel.")
    ] = None,
    batch: Batch = None,
    rounds: Rounds = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    break_even: Annotated[
        bool, typer.Option("--break-even/--no-break-even", help="Look for the density from which on dense wins.")
    ] = True,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time single layers, forward and backward, and compare with every engine that is here."""
    settings = _changed(
        of_kernels.QUICK if quick else of_kernels.KernelSettings(),
        densities=density,
        granularity=granularity,
        batch=batch,
        rounds=rounds,
        threads=threads,
        isa=isa,
        scanned=None if break_even else (),
    )
    _show(lambda watch: of_kernels.measure(settings, watch=watch), as_json=as_json, out=out)


@app.command("step", epilog=STEP_EXAMPLE)
def step(
    density: Density = None,
    batch: Batch = None,
    rounds: Rounds = None,
    quick: Quick = False,
    threads: Threads = None,
    isa: Isa = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of activations: float32, or bfloat16 to time the sparse networks in both.")
    ] = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time training steps of ResNet-18 and count their memory."""
    settings = _changed(
        of_step.QUICK if quick else of_step.StepSettings(),
        densities=density,
        batch=batch,
        rounds=rounds,
        threads=threads,
        isa=isa,
        dtype=dtype,
    )
    _show(lambda watch: of_step.measure(settings, watch=watch), as_json=as_json, out=out)


@app.command("payload", epilog=PAYLOAD_EXAMPLE)
def payload(
    density: Density = None,
    rounds: Rounds = None,
    quick: Quick = False,
    threads: Threads = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Count the bytes of messages with the weights of ResNet-18, and time writing and reading them."""
    settings = _changed(
        of_payload.QUICK if quick else of_payload.PayloadSettings(), densities=density, rounds=rounds, threads=threads
    )
    _show(lambda watch: of_payload.measure(settings, watch=watch), as_json=as_json, out=out)


@app.command("round", epilog=ROUND_EXAMPLE)
def round_(
    clients: Annotated[list[int] | None, typer.Option(min=1, help="Clients of a run; may be repeated.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="inline or process; may be repeated; default both.")] = None,
    per_round: Annotated[int | None, typer.Option(min=1, help="Most clients of a round; default all.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of the engine process; default 2.")] = None,
    rounds: Rounds = None,
    quick: Quick = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each process; default 1.")] = None,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Time federated rounds, and count the server's memory and the bytes sent."""
    settings = _changed(
        of_round.QUICK if quick else of_round.RoundSettings(),
        clients=clients,
        engines=engine,
        per_round=per_round,
        workers=workers,
        rounds=rounds,
        threads=threads,
    )
    _show(lambda watch: of_round.measure(settings, watch=watch), as_json=as_json, out=out)


Settings = TypeVar(
    "Settings", of_kernels.KernelSettings, of_step.StepSettings, of_payload.PayloadSettings, of_round.RoundSettings
)


def _changed(settings: Settings, **given: object) -> Settings:
    """The settings with those that were given; None and an empty list leave them."""
    known = {field.name for field in fields(settings)}
    changes = {name: value for name, value in given.items() if value is not None and value != [] and name in known}
    return replace(settings, **changes)  # type: ignore[arg-type]


def _show(measure: Callable[[Watch], Report], *, as_json: bool, out: Path | None) -> None:
    """Measures, telling progress on standard error, and prints and writes what came out."""
    if out is not None:
        check_target(out)
    report = measure(lambda text: print(text, file=sys.stderr, flush=True))
    if out is not None:
        report.write(out)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    for table in report.tables:
        _print_table(table)
    for note in report.notes():
        print(note)


def _print_table(text: TextTable) -> None:
    table = Table(box=None, pad_edge=False, title=text.title, title_justify="left", title_style="")
    for place, heading in enumerate(text.headings):
        table.add_column(Text(heading), justify="left" if place == 0 else "right", no_wrap=True)
    for row in text.rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, width=WIDEST)
    console.print(table)
    console.print()
