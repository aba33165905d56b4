"""The first case of every measuring stage once more: clocks that fell in between show here."""

import importlib
import json

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.stages.provenance import state

__all__ = ["run"]


def run(context: Context) -> None:
    """One row a stage with the relative change of its first case, and the device's state at the end."""
    firsts = json.loads((context.out / "firsts.json").read_text(encoding="utf-8"))
    context.row({"stage": "", "change": 0.0, "what": "state", **state()})
    if not firsts:
        raise Unavailable("no stage before this one measured a case that can be repeated")
    for name, first in firsts.items():
        module = importlib.import_module(f"benchmarks.gpu.stages.{name}")
        now, then = module.again(first), _seconds(first)
        context.row({"stage": name, "change": now / then - 1, "then": then, "now": now})


def _seconds(row: dict[str, dict[str, float]]) -> float:
    found = row.get("seconds") or row.get("graph") or row["eager"]
    return found["median"]
