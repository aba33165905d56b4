"""TensorBoard: event files in `tensorboard/` of the run folder."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedsparse.experiment.trackers.sink import TrackedRun, numbers

__all__ = ["Tracker"]


class Tracker:
    """Writes event files, read by `tensorboard --logdir RUN_DIR`."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: SummaryWriter | None = None

    def open(self, run: TrackedRun) -> None:
        self._folder = run.folder / "tensorboard"

    def record(self, metrics: Mapping[str, object]) -> None:
        step = int(str(metrics["round"]))
        if self._writer is None:
            # With the first round known, TensorBoard drops what an interrupted run wrote beyond its checkpoint.
            self._writer = SummaryWriter(self._folder, purge_step=step)
        for name, value in numbers(metrics).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
