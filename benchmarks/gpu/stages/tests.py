"""The correctness suite of a GPU: `pytest -m gpu` over the files that have such tests."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.site import ROOT

__all__ = ["files_with_gpu_tests", "outcome", "run"]

_LINE = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \((.*)\))?")
_MARKED = ("mark.gpu", "tests.devices", "(where")  # imports and the fixture of tests that run on every device
_WRONG = ("FAILED", "ERROR", "XPASS")


def files_with_gpu_tests(root: Path = ROOT) -> list[str]:
    """Test files with the marker: others may need packages that a machine which only computes lacks."""
    paths = sorted((root / "tests").rglob("test_*.py"))
    return [
        str(path.relative_to(root))
        for path in paths
        if any(word in path.read_text(encoding="utf-8") for word in _MARKED)
    ]


def outcome(line: str) -> tuple[str, str, str] | None:
    """Test, outcome and reason of a line of `pytest -v`, or None."""
    found = _LINE.match(line)
    return None if found is None else (found[1], found[2].lower(), found[3] or "")


def run(context: Context) -> None:
    """Keeps every test that did not pass, and how many did."""
    found = files_with_gpu_tests()
    if not found:
        raise Unavailable("no test file carries the marker gpu")
    # Warnings of another torch version than the pinned one are shown, not errors.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider",
               "--tb=short", "--durations=5", "--color=no", *found]  # fmt: skip
    counts: Counter[str] = Counter()
    environ = {**os.environ, "COLUMNS": "300"}  # pytest cuts reasons to the width of a terminal
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        told = outcome(line)
        if told is not None:
            counts[told[1]] += 1
            if told[1] != "passed":
                context.row({"what": "test", "test": told[0], "outcome": told[1], "reason": told[2]})
    status = process.wait()
    context.row({"what": "counts", **counts, "status": status, "files": found})
    if status != 0 or any(counts[word.lower()] for word in _WRONG):
        raise RuntimeError(f"pytest ended with {status}: {dict(counts)}; the log has the failures")
    if not counts["passed"]:
        raise Unavailable(f"every test was skipped: {dict(counts)}")
