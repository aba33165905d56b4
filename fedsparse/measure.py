"""Seconds, peak bytes and joules of a piece of work, each with its source."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import nn

from fedsparse import _native, energy

__all__ = ["Reading", "measure", "resident_bytes"]

Source = Literal["measured", "modelled", "unavailable"]


@dataclass(frozen=True)
class Reading:
    """One number with its unit and where it comes from.

    Attributes:
        value: the number; None when unavailable.
        unit: `s`, `B` or `J`.
        source: `measured` (clock, allocator, sensor), `modelled` (a formula) or `unavailable`.
        reason: why it is unavailable, where that can be said.
    """

    value: float | None
    unit: str
    source: Source
    reason: str = ""


def resident_bytes(module: nn.Module) -> int:
    """Bytes that a module's parameters, gradients and buffers, patterns among them, occupy now."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [p.grad for p in module.parameters() if p.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _joules(meter: energy.Meter) -> Reading:
    try:
        return Reading(meter.joules(), "J", "measured")
    except energy.Unavailable as error:
        return Reading(None, "J", "unavailable", str(error))


class measure:
    """Context that measures the work inside it.

        with fs.measure() as m:
            train()
        m.seconds.value, m.peak_bytes.value

    Contexts may nest; they see all threads of the process.

    Args:
        device: whose memory is counted; main memory by default.

    Attributes:
        seconds: wall-clock time; a CUDA device is synchronised at both ends.
        peak_bytes: most bytes that torch, oneDNN and the sparse kernels held above the level at entry. In main
            memory the allocator's calls are counted (Linux with glibc, else unavailable); on CUDA torch's counter
            is read.
        joules: energy of the whole device, whoever used it: processors and their memory (RAPL on Linux), or the
            GPU (NVML, extra `energy`); unavailable, with the reason, where no counter can be read.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._device = torch.device("cpu" if device is None else device)
        unavailable: Source = "unavailable"
        self.seconds = Reading(None, "s", unavailable)
        self.peak_bytes = Reading(None, "B", unavailable)
        self.joules = Reading(None, "J", unavailable)

    def __enter__(self) -> "measure":
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._meter = energy.Meter(self._one_device())  # before memory is counted, which it takes some of
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._level = torch.cuda.memory_allocated(self._device)
        elif _native.extension().memory_counted():
            native = _native.extension()
            self._outer_peak, self._level = native.memory_peak(), native.memory_level()
            native.memory_set_peak(self._level)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds = Reading(time.perf_counter() - self._start, "s", "measured")
        self._read_peak()
        self.joules = _joules(self._meter)

    def _one_device(self) -> torch.device:
        """The device, torch's current one where `cuda` has no number."""
        unnumbered = self._device.type == "cuda" and self._device.index is None
        return torch.device("cuda", torch.cuda.current_device()) if unnumbered else self._device

    def _read_peak(self) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        elif _native.extension().memory_counted():
            peak = _native.extension().memory_peak()
            # An enclosing measurement must not lose what it has seen so far.
            _native.extension().memory_set_peak(max(self._outer_peak, peak))
        else:
            return
        self.peak_bytes = Reading(peak - self._level, "B", "measured")
