"""What is measured on what: tree, device, driver, compilers, libraries, clocks."""

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from benchmarks.gpu.context import Context
from benchmarks.gpu.record import Row
from benchmarks.gpu.site import ROOT

__all__ = ["run", "source_digest", "state"]

_QUERY = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw",
    "memory.used", "memory.total", "utilization.gpu",
)  # fmt: skip
_FLAGS = ("NVIDIA_TF32_OVERRIDE", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")
_SOURCES = ("fedsparse", "kernels", "csrc", "benchmarks", "tests", "CMakeLists.txt", "setup.py", "pyproject.toml")


def run(context: Context) -> None:
    """One row for each question; what cannot be answered has the reason in place of the answer."""
    context.row({"what": "tree", **_tree()})
    context.row({"what": "machine", "platform": platform.platform(), "python": platform.python_version(),
                 "cores": os.cpu_count()})  # fmt: skip
    context.row({"what": "state", **state()})
    context.row({"what": "tools", **{tool: _version(tool) for tool in ("nvcc", "ncu", "compute-sanitizer", "cmake")}})
    context.row({"what": "flags", **{name: os.environ.get(name) for name in _FLAGS}})
    context.row({"what": "libraries", **_libraries()})
    context.row({"what": "device", **_device()})


def _tree() -> Row:
    commit, dirty = _output("git", "rev-parse", "HEAD"), _output("git", "status", "--porcelain")
    return {"commit": commit, "dirty": dirty if dirty.startswith("unavailable") else bool(dirty),
            "sources": source_digest()}  # fmt: skip


def source_digest(root: Path = ROOT) -> str:
    """Hash of all sources: says which tree this is where there is no git, as in a copy on another machine."""
    digest = hashlib.sha256()
    paths = [path for name in _SOURCES for path in (root / name, *(root / name).rglob("*")) if path.is_file()]
    for path in sorted(path for path in paths if path.suffix not in (".so", ".pyc", ".json")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def state() -> Row:
    """Clocks, temperature and load of the device now, as nvidia-smi prints them."""
    answer = _output("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    if answer.startswith("unavailable"):
        return {"nvidia-smi": answer}
    return dict(zip(_QUERY, (part.strip() for part in answer.splitlines()[0].split(",")), strict=False))


def _version(tool: str) -> str:
    answer = _output(tool, "--version")
    found = re.search(r"\d+\.\d+[\w.]*", answer.replace("Copyright", ""))
    return answer if answer.startswith("unavailable") or not found else answer.splitlines()[-1].strip()


def _libraries() -> Row:
    import torch

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "unavailable: not installed"

    return {
        **{name: version(name) for name in ("torch", "triton", "numpy", "pybind11")},
        "cuda": torch.version.cuda or "unavailable: a CPU build of torch",
        "cudnn": torch.backends.cudnn.version() or "unavailable: a CPU build of torch",
    }


def _device() -> Row:
    import torch

    if not torch.cuda.is_available():
        return {"name": "unavailable: torch sees no CUDA device"}
    seen = torch.cuda.get_device_properties(0)
    return {"name": seen.name, "capability": [seen.major, seen.minor], "multiprocessors": seen.multi_processor_count,
            "memory": seen.total_memory, "l2": getattr(seen, "L2_cache_size", None)}  # fmt: skip


def _output(*command: str) -> str:
    """What a command prints, or `unavailable: ` and why."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unavailable: {error}"
    if done.returncode != 0:
        return f"unavailable: {command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}"
    return done.stdout.strip()
