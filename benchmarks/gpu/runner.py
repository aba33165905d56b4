"""Runs the stages, each as a process of its own that is ended at its limit, and writes the record after each."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.protocol import Plan, Stage, plan, select
from benchmarks.gpu.record import RunRecord, StageRecord, write
from benchmarks.gpu.site import ROOT, environment, stage_site

__all__ = ["DRIFT", "judged", "run", "run_stage"]

DRIFT = 0.03  # of the first cases between beginning and end; more marks the file
_LOG = 6000  # characters of a process's output that are kept
Watch = Callable[[str], None]


def run(
    out: Path, *, budget: float, names: Sequence[str] = (), cpu: bool = False, command: Sequence[str] = (), watch: Watch
) -> RunRecord:
    """Runs the stages `names`, all where none is named, and writes the record to `out` after each.

    Raises:
        ValueError: a name that is no stage.
    """
    stages, began = select(names), time.monotonic()
    record = RunRecord(datetime.now(UTC).isoformat(timespec="seconds"), list(command), budget, cpu)
    with tempfile.TemporaryDirectory(prefix="fedsparse-gpu-") as folder:
        for place, stage in enumerate(stages):
            (planned, *_) = plan(stages[place:], budget - (time.monotonic() - began))
            watch(f"{stage.name}: {planned.cut or f'at most {planned.seconds:.0f} s'}")
            done = _one(planned, Path(folder), cpu, record)
            record = judged(dataclasses.replace(record, stages=[*record.stages, done]))
            write(record, out)
            watch(f"{stage.name}: {done.status} after {done.seconds:.1f} s, {len(done.rows)} rows {done.reason[-300:]}")
    return record


def _one(planned: Plan, folder: Path, cpu: bool, record: RunRecord) -> StageRecord:
    if planned.cut:
        return StageRecord(planned.stage.name, "cut", planned.cut)
    if planned.stage.name == "drift":  # which cases to repeat
        (folder / "firsts.json").write_text(json.dumps(_firsts(record)), encoding="utf-8")
    return run_stage(planned.stage, planned.seconds, folder, cpu=cpu)


def run_stage(stage: Stage, seconds: float, folder: Path, *, cpu: bool, patience: float | None = None) -> StageRecord:
    """Runs one stage in a fresh interpreter and collects what it left, also where it had to be ended."""
    lines, log = folder / f"{stage.name}.jsonl", folder / f"{stage.name}.log"
    lines.write_text("")
    asked = [sys.executable, "-m", "benchmarks.gpu.worker", stage.name, f"--limit={seconds}", f"--lines={lines}"]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*asked, *(["--cpu"] if cpu else [])],
            cwd=ROOT, env=environment(stage_site(), os.environ), stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        ended = _waited(process, seconds + (stage.patience if patience is None else patience))
    took = time.monotonic() - began
    return _collected(stage.name, seconds, took, lines, log, ended)


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the process ended by itself; if not, it and what it started are killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: only its own children are in it
        process.wait()
    return True


def _collected(name: str, limit: float, took: float, lines: Path, log: Path, ended: bool) -> StageRecord:
    entries = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    end: dict[str, Any] = next((entry for entry in entries if "status" in entry), {})
    if not end:
        why = "the process ended without a word; its log says more" if ended else f"ended after {took:.0f} s"
        end = {"status": "failed" if ended else "timeout", "reason": why}
    return StageRecord(
        name, end["status"], end["reason"], round(took, 2), round(limit, 1),
        [entry["row"] for entry in entries if "row" in entry],
        [entry["note"] for entry in entries if "note" in entry],
        log.read_text(encoding="utf-8", errors="replace")[-_LOG:],
    )  # fmt: skip


# ---- drift
def _firsts(record: RunRecord) -> dict[str, Any]:
    """Of every stage that measured, the first row that says it may be repeated."""
    found = {stage.name: next((row for row in stage.rows if row.get("repeat")), None) for stage in record.stages}
    return {name: row for name, row in found.items() if row is not None}


def judged(record: RunRecord) -> RunRecord:
    """The record with its drift and the marks that follow from what is in it."""
    drift = {row["stage"]: row["change"] for row in record.rows("drift") if row["stage"]}
    marked = [
        f"the first case of {name} took {change:+.1%} at the end; more than {DRIFT:.0%} either way"
        for name, change in drift.items()
        if abs(change) > DRIFT
    ]
    if record.cpu:
        marked.append("dry run on the CPU: the figures mean nothing")
    tests = record.stage("tests")
    if tests is not None and tests.status not in ("done", "unavailable"):
        marked.append(f"the tests {tests.status}: what was measured may compute something else")
    return dataclasses.replace(record, drift=drift, marked=marked)
