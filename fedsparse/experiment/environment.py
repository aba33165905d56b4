"""What a run was computed on: versions, processor, threads, devices."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from fedsparse._native import instruction_sets
from fedsparse.errors import BackendError

__all__ = ["environment", "processor", "version"]

PACKAGES = ("fedsparse", "torch", "numpy")


def environment() -> dict[str, object]:
    """Everything that may explain a difference in time or in the last bits, ready for JSON."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": _instruction_sets(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Model name of the processor, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    """Of the compiled kernels, best first; empty when they cannot be loaded."""
    try:
        return list(instruction_sets())
    except BackendError:
        return []
