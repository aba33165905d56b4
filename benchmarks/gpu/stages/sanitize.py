"""compute-sanitizer over four tiny cases of every kind: wrong addresses, and races in shared memory."""

import os
import re
import shutil
import subprocess
import sys

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.record import Row

__all__ = ["command", "run", "verdict"]

_TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (?P<found>\d+)")
_STATUS = 9  # of a program in which the tool found something
_REFUSED = re.compile(r"Device not supported|Unable to|not supported on this|LibraryNotLoaded|initialization error")


def run(context: Context) -> None:
    """One row a tool; the stage fails where one found something, and is unavailable where both refuse to run."""
    context.needs_gpu()
    if shutil.which("compute-sanitizer") is None:
        raise Unavailable("compute-sanitizer is not on PATH")
    rows = [_checked(tool, context) for tool in _TOOLS]
    for row in rows:
        context.row(row)
    if any(row["verdict"] == "found" for row in rows):
        raise RuntimeError(f"compute-sanitizer found something: {rows}")
    if all(row["verdict"] != "clean" for row in rows):
        raise Unavailable("; ".join(f"{row['tool']}: {row['verdict']}" for row in rows))


def command(tool: str) -> list[str]:
    """The tool around the tiny cases."""
    more = ["--leak-check=no"] if tool == "memcheck" else []
    return ["compute-sanitizer", f"--tool={tool}", f"--error-exitcode={_STATUS}", *more,
            sys.executable, "-m", "benchmarks.gpu.tiny"]  # fmt: skip


def _checked(tool: str, context: Context) -> Row:
    # Each tensor gets memory of its own: inside a cached block nobody would notice a wrong address.
    environ = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    before = context.left()
    try:
        done = subprocess.run(command(tool), env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=max(before, 1), check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"tool": tool, "verdict": f"not finished in {before:.0f} s"}
    print(done.stdout)
    return {"tool": tool, "seconds": before - context.left(), **verdict(done.returncode, done.stdout)}


def verdict(status: int, text: str) -> Row:
    """What the end of a tool's output means: `clean`, `found`, or why nothing was checked."""
    summary = _SUMMARY.search(text)
    refused = _REFUSED.search(text)
    if status == 0 and summary and int(summary["found"]) == 0:
        return {"verdict": "clean"}
    if refused is not None and (summary is None or "benchmarks.gpu.tiny" not in text):
        return {"verdict": f"refused: {refused[0]}"}
    if summary and int(summary["found"]):
        return {"verdict": "found", "count": int(summary["found"]), "text": text[:3000]}
    return {"verdict": f"ended with {status}", "text": text[-1500:]}
