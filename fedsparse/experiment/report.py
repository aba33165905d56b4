"""Runs as one HTML file: curves, the Pareto front of accuracy against bytes, layers over rounds, final figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedsparse.errors import CheckpointError, ConfigError
from fedsparse.experiment import page
from fedsparse.experiment.compare import Row, rows
from fedsparse.experiment.pareto import front
from fedsparse.experiment.records import Run, read_runs
from fedsparse.experiment.rundir import read_json
from fedsparse.experiment.series import accuracy_curves, final_point, layer_grid, turnover
from fedsparse.experiment.units import byte_text, decimal_text, ratio_text, second_text

__all__ = ["write_report"]

AXES = ("rounds", "bytes", "client seconds")


def write_report(folders: Sequence[str | Path], file: str | Path | None = None) -> Path:
    """Writes a report on runs, which needs no network to be read; the same runs give the same bytes.

    Args:
        folders: of runs, or of runs with variants.
        file: where to; None means `report.html` in the folder, of which there must be one alone.

    Returns:
        Where the report is.

    Raises:
        ConfigError: several folders and no file.
        MissingExtraError: matplotlib is not installed.
        CheckpointError: a folder is not a run folder, its files are damaged, or the report cannot be written.
    """
    if file is None and len(folders) != 1:
        raise ConfigError(f"a report on {len(folders)} folders needs a place: expected -o FILE.html")
    runs = read_runs(folders)
    target = Path(file) if file is not None else Path(folders[0]) / "report.html"
    title = ", ".join(Path(folder).resolve().name for folder in folders)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)  # before the work of drawing
        target.write_text(page.page(title, _parts(runs)), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{target}: the report cannot be written ({error}); choose another -o") from error
    return target


def _parts(runs: Sequence[Run]) -> Iterable[str]:
    from fedsparse.experiment import charts  # needs matplotlib, which only a report does

    yield page.legend([(run.name, charts.colour(index), charts.dash(index)) for index, run in enumerate(runs)])
    points = {index: point for index, run in enumerate(runs) if (point := final_point(run)) is not None}
    best = [list(points)[place] for place in front(list(points.values()))]
    yield page.table("Final figures", [_row(row, best=index in best) for index, row in enumerate(rows(runs))])
    drawn = [accuracy_curves(run) for run in runs]
    yield page.figure(
        "Accuracy",
        charts.curves({name: [lines[name] for lines in drawn] for name in AXES}, y="test accuracy", chart="accuracy"),
        "Test accuracy over rounds, bytes of all messages so far, and seconds inside clients so far.",
    )
    yield page.figure(
        "Accuracy against bytes",
        charts.pareto(points, best, chart="pareto"),
        "Final accuracy and bytes of all messages. Filled: on the Pareto front, no run is as good with fewer bytes.",
    )
    yield page.figure(
        "Mask turnover",
        charts.curves({"rounds": [turnover(run) for run in runs]}, y="changed / kept", chart="turnover"),
        "Positions that differ from the previous round's masks, as a share of the kept ones (masks_changed / nnz).",
    )
    for index, run in enumerate(runs):
        grid = layer_grid(run)
        if grid is not None:
            caption = "Kept share of each pruned weight, and positions changed since the previous round by kept ones."
            yield page.figure(f"Layers of {run.name}", charts.layers(grid, chart=f"layers-{index}"), caption)
    yield page.table("Machines", [_machine(run) for run in runs])


def _row(row: Row, *, best: bool) -> dict[str, str]:
    measured = {
        "client time": (second_text(row.client_seconds), "client_seconds"),
        "peak memory": (byte_text(row.peak_bytes), "peak_bytes"),
        "down": (byte_text(row.bytes_down), "bytes_down"),
        "up": (byte_text(row.bytes_up), "bytes_up"),
    }
    return {
        "run": row.name,
        "method": row.method,
        "rounds": f"{row.rounds} of {row.planned}",
        "density": decimal_text(row.density),
        "accuracy": decimal_text(row.accuracy),
        "on the front": "yes" if best else "",
        **{name: f"{text} {ratio_text(row.relative.get(key))}".rstrip() for name, (text, key) in measured.items()},
        "note": row.note,
    }


def _machine(run: Run) -> dict[str, str]:
    """What `env.json` says; a run that was moved without it has a line all the same."""
    path = run.folder / "env.json"
    found = read_json(path) if path.is_file() else {}
    keys = ("fedsparse", "torch", "python", "processor", "threads", "platform")
    return {"run": run.name, **{key: str(found.get(key, "-")) for key in keys}}
