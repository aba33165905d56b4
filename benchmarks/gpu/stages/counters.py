"""Hardware counters of the most important kernels, with Nsight Compute; clocks are left as they are."""

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu.context import Context, Unavailable
from benchmarks.gpu.kinds import of_device
from benchmarks.gpu.record import Row

__all__ = ["METRICS", "command", "parsed", "run"]

METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
    "launch__registers_per_thread",
    "launch__occupancy_limit_shared_mem",
)
_KERNELS = 3  # that are looked at


def run(context: Context) -> None:
    """One row for each launch that was profiled."""
    context.needs_gpu()
    if shutil.which("ncu") is None:
        raise Unavailable("ncu is not on PATH")
    names = list(dict.fromkeys(kernel for kind in of_device("cuda") for kernel in kind.kernels))
    if names[_KERNELS:]:
        context.note(f"not profiled: {', '.join(names[_KERNELS:])}")
    for name in names[:_KERNELS]:
        if context.left() < 5:
            context.note(f"{name}: no time left")
            continue
        for row in _profiled(name, context):
            context.row(row)


def command(kernel: str) -> list[str]:
    """Three launches of one kernel, on a layer of the middle of ResNet-18."""
    return ["ncu", "--csv", "--page=raw", "--clock-control=none", "--launch-skip=3", "--launch-count=3",
            f"--kernel-name=regex:{kernel}", f"--metrics={','.join(METRICS)}",
            sys.executable, "-m", "benchmarks.gpu.profiled"]  # fmt: skip


def _profiled(kernel: str, context: Context) -> list[Row]:
    try:
        done = subprocess.run(command(kernel), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=max(context.left(), 1), check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        context.note(f"{kernel}: ncu did not finish in time")
        return []
    print(done.stdout)
    refused = re.search(r"==ERROR== .*", done.stdout)
    rows = list(parsed(done.stdout))
    if refused or not rows:
        raise Unavailable(f"ncu: {refused[0] if refused else 'no kernel of that name was launched'}"[:400])
    return rows


def parsed(text: str) -> Iterator[Row]:
    """Launches of ncu's raw page: a line of names, a line of units, a line a launch; `==` begins its own messages."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return
    names, units, *launches = csv.reader(io.StringIO("\n".join(lines)))
    for launch in launches:
        found = dict(zip(names, launch, strict=False))
        metrics = {name: f"{found[name]} {unit}".strip() for name, unit in zip(names, units, strict=False)
                   if name in METRICS}  # fmt: skip
        yield {"kernel": found.get("Kernel Name", ""), "grid": found.get("Grid Size", ""), **metrics}
