"""Run folders written by hand."""

import json
from pathlib import Path
from typing import Any

LINE = {"kind": "train", "accuracy": 0.8, "density": 1.0, "nnz": 10, "masks_changed": 0, "peak_bytes": 400}
SPENT = {"client_seconds": 2.0, "bytes_down": 100, "bytes_up": 50}


def write_run(
    run: Path,
    *,
    method: str = "fedavg",
    name: str | None = None,
    seed: int = 0,
    rounds: int = 2,
    done: int = 2,
    batch_size: int = 32,
    alpha: float = 0.5,
    settings: dict[str, Any] | None = None,
    **line: object,
) -> Path:
    """A folder with `resolved.json` and `done` equal lines of metrics; returns it."""
    run.mkdir(parents=True)
    resolved = {
        "run": {"name": name or run.name, "rounds": rounds, "seed": seed, "out": str(run)},
        "data": {"name": "digits", "alpha": alpha, "root": f"/somewhere/{run.name}"},
        "model": {"name": "mlp"},
        "method": {"name": method, **(settings or {})},
        "client": {"per_round": 2, "epochs": 1, "batch_size": batch_size, "lr": 0.1},
    }
    (run / "resolved.json").write_text(json.dumps(resolved))
    write_lines(run / "metrics.jsonl", [{"round": n, **LINE, **SPENT, **line} for n in range(done)])
    return run


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """A file of records."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
