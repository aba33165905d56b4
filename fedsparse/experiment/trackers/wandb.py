"""Weights & Biases: a run of the project `fedsparse`, or of the one that WANDB_PROJECT names."""

import os
from collections.abc import Mapping
from typing import Any

import wandb

from fedsparse.experiment.trackers.sink import TrackedRun, numbers, recall, remember

__all__ = ["Tracker"]


class Tracker:
    """Logs to W&B; rounds that come again after a resume are ignored there, as their steps are past."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun) -> None:
        known = recall(run, "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedsparse"),
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            id=known,
            resume=None if known is None else "allow",
        )
        remember(run, "wandb", self._run.id)

    def record(self, metrics: Mapping[str, object]) -> None:
        self._run.log(numbers(metrics), step=metrics["round"])

    def close(self) -> None:
        self._run.finish()
