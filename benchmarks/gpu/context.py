"""What a stage is given: its time, and where its rows go at once."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.record import Row

__all__ = ["Context", "Unavailable"]


class Unavailable(Exception):
    """This machine cannot do what a stage asks; the text says why."""


@dataclass(frozen=True)
class Context:
    """A stage's surroundings.

    Attributes:
        limit: seconds for the stage.
        cpu: the dry run: tiny shapes on the CPU, so that the code runs anywhere.
        lines: file that takes one JSON object a line, whole after each.
        out: folder for logs of tools.
        clock: seconds, monotonic.
        began: reading of the clock at the start.
    """

    limit: float
    cpu: bool
    lines: Path
    out: Path
    clock: Callable[[], float] = time.monotonic
    began: float = 0.0

    def left(self) -> float:
        """Seconds that are left of the limit."""
        return self.limit - (self.clock() - self.began)

    def row(self, row: Row) -> None:
        """Keeps a finding, whatever happens to the process afterwards."""
        self._append({"row": row})

    def note(self, text: str) -> None:
        """Keeps what was left out, and why."""
        self._append({"note": text})

    def ended(self, status: str, reason: str = "") -> None:
        """Keeps how the stage ended."""
        self._append({"status": status, "reason": reason})

    def needs_gpu(self) -> None:
        """Raises `Unavailable` in the dry run and where torch sees no device."""
        import torch

        if self.cpu:
            raise Unavailable("the dry run (--cpu) uses no GPU")
        if not torch.cuda.is_available():
            raise Unavailable("torch sees no CUDA device")

    def device(self) -> str:
        """Where a stage that has a dry run measures: `cpu` in that, else `cuda`; raises `Unavailable` without one."""
        if self.cpu:
            return "cpu"
        self.needs_gpu()
        return "cuda"

    def _append(self, entry: dict[str, object]) -> None:
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
