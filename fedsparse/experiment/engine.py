"""Engines by name, and the threads that clients get: as many in one engine as in another, so that results agree."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from fedsparse.errors import ConfigError
from fedsparse.experiment.settings import EngineTable
from fedsparse.federated.engines.base import Engine
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.engines.process import ProcessEngine
from fedsparse.federated.plan import Plan
from fedsparse.flower.superlink import require_flower

__all__ = ["client_threads", "cores", "engines", "open_engine", "require_engine"]

_FOLDER = ".clients"


def engines() -> dict[str, str]:
    """What `engine.kind` may be, each with a sentence."""
    return {
        "inline": "Clients one after the other in this process, or engine.cohort_batch at a time.",
        "process": "Clients shared by engine.workers processes on this host; the same bits as inline.",
        "flower": "Clients on Flower's nodes, simulated or on engine.superlink; needs fedsparse[flower].",
    }


def require_engine(table: EngineTable) -> None:
    """Refuses an engine that is not installed.

    Raises:
        ConfigError: it needs a package that is missing.
    """
    if table.kind == "flower":
        require_flower()


def open_engine(table: EngineTable, plan: Plan, folder: Path) -> Engine:
    """The engine of a run in `folder` whose rounds are in this process; it keeps a subfolder there until it is closed.

    Raises:
        ConfigError: there is no such engine, or it cannot take the plan.
    """
    return _ENGINES[table.kind](table, plan, folder / _FOLDER)


def _inline(table: EngineTable, plan: Plan, folder: Path) -> Engine:
    return InlineEngine(plan, folder=folder, cohort_batch=table.cohort_batch)


def _process(table: EngineTable, plan: Plan, folder: Path) -> Engine:
    return ProcessEngine(plan, workers=table.workers, timeout_s=table.timeout_s, folder=folder)


_ENGINES: dict[str, Callable[[EngineTable, Plan, Path], Engine]] = {"inline": _inline, "process": _process}


def client_threads(table: EngineTable) -> int:
    """Threads a client computes with: those of the table, else the worker's share of torch's threads.

    Raises:
        ConfigError: there are more workers than cores, and `engine.threads` does not say that this is meant.
    """
    if table.threads is not None:
        return table.threads
    if table.workers > cores():
        raise ConfigError(
            f"engine.workers = {table.workers}: expected at most {cores()}, the cores this process may use; "
            "take fewer, or set engine.threads = 1 to have them share cores"
        )
    return max(1, torch.get_num_threads() // table.workers)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
