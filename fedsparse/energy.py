"""Joules from the machine's own counters: RAPL for processors and their memory, NVML for NVIDIA GPUs.

Counters belong to the machine, not to this process: whatever else runs at the time is in their figures. Where no
counter can be read there is no figure, only the reason; nothing is estimated.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Meter", "Unavailable"]

POWERCAP = Path("/sys/class/powercap")
# No package with its memory draws more; within `range / MOST_WATTS` seconds a counter cannot wrap around twice.
MOST_WATTS = 1000.0


class Unavailable(Exception):
    """A counter cannot be read; the message says why."""


@dataclass(frozen=True)
class _Counter:
    """One counter of energy.

    Attributes:
        name: where it is.
        read: joules since some moment in the past.
        wraps_at: joules after which it begins again at 0; None where it never does.
    """

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None


class Meter:
    """Joules of one device since the meter was made.

    Args:
        device: `cpu`: packages and their memory (RAPL, Linux); `cuda:N`: that GPU; `cuda`: all visible GPUs (NVML).
    """

    def __init__(self, device: torch.device | str) -> None:
        self._reason = ""
        self._counters: list[_Counter] = []
        device = torch.device(device)
        try:
            self._counters = _gpus(device.index) if device.type == "cuda" else _packages()
            self._first = [counter.read() for counter in self._counters]
        except Unavailable as error:
            self._reason = str(error)
        self._start = time.monotonic()

    def joules(self) -> float:
        """Energy since the meter was made.

        Raises:
            Unavailable: no counter, no permission, or so much time that a counter may have wrapped around twice.
        """
        if self._reason:
            raise Unavailable(self._reason)
        seconds = time.monotonic() - self._start
        return sum(_since(first, counter, seconds) for first, counter in zip(self._first, self._counters, strict=True))


def _since(first: float, counter: _Counter, seconds: float) -> float:
    used = counter.read() - first
    if counter.wraps_at is None:
        return used
    if seconds > counter.wraps_at / MOST_WATTS:
        raise Unavailable(
            f"{counter.name} wraps around at {counter.wraps_at:.0f} J, perhaps twice in {seconds:.0f} s; "
            "measure shorter pieces of work"
        )
    return used if used >= 0 else used + counter.wraps_at


# ---- processors
def _packages() -> list[_Counter]:
    """One counter a package, and one for its memory where it is counted apart; parts of a package are in it."""
    zones = sorted(POWERCAP.glob("intel-rapl:*"))  # AMD's processors have their counters under this name too
    counted = [zone for zone in zones if _named(zone).startswith(("package", "dram"))]
    if not counted:
        raise Unavailable(f"no RAPL counters in {POWERCAP}: this system, or its virtual machine, does not show any")
    return [_rapl(zone) for zone in counted]


def _named(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _rapl(zone: Path) -> _Counter:
    return _Counter(str(zone), lambda: _microjoules(zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj"))


def _microjoules(file: Path) -> float:
    """A file's number, in joules."""
    try:
        return int(file.read_text()) / 1e6
    except PermissionError as error:
        raise Unavailable(f"{file}: permission denied; an administrator may allow it: chmod a+r {file}") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"{file} cannot be read: {error}") from error


# ---- GPUs
def _gpus(index: int | None) -> list[_Counter]:
    """One counter a GPU. torch and NVML number them differently, so they are found by their UUID."""
    try:
        import pynvml
    except ImportError as error:
        raise Unavailable("GPUs are asked through NVML: pip install 'fedsparse[energy]'") from error
    indices = range(torch.cuda.device_count()) if index is None else [index]
    if not indices:
        raise Unavailable("torch sees no CUDA device")
    try:
        pynvml.nvmlInit()
        uuids = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in indices]
        return [_nvml(pynvml, uuid) for uuid in uuids]
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML: {error}") from error


def _nvml(pynvml: Any, uuid: str) -> _Counter:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def read() -> float:
        try:
            millijoules: int = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # since the driver was loaded
        except pynvml.NVMLError as error:
            raise Unavailable(f"{uuid}: {error}; energy is counted from Volta on") from error
        return millijoules / 1e3

    return _Counter(uuid, read)
