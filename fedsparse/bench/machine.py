"""How much arithmetic this machine can do at most, and with how many threads and which instructions it is done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsparse import _native
from fedsparse.allocator import keep_freed_memory
from fedsparse.backends.choose import BACKENDS
from fedsparse.backends.cpu import CpuBackend
from fedsparse.errors import ConfigError

__all__ = ["computing_with", "multiply_add_peak"]

_LONG_ENOUGH = 0.02  # seconds; clock and start of the threads then weigh less than a thousandth
_REPEATS = 5


def multiply_add_peak(isa: str) -> float:
    """Floating-point operations a second of multiplications and additions in registers, with torch's threads.

    Measured, not read off a data sheet: clocks differ with the load, and virtual machines hide theirs.
    """
    threads, rounds = torch.get_num_threads(), 1 << 14
    while _seconds(isa, rounds, threads)[0] < _LONG_ENOUGH:
        rounds *= 2
    measured = (_seconds(isa, rounds, threads) for _ in range(_REPEATS))
    return max(flops / seconds for seconds, flops in measured)


def _seconds(isa: str, rounds: int, threads: int) -> tuple[float, int]:
    multiply_add = _native.extension().multiply_add
    start = time.perf_counter()
    flops = int(multiply_add(isa, rounds, threads))
    return time.perf_counter() - start, flops


@contextmanager
def computing_with(*, threads: int | None = None, isa: str | None = None) -> Iterator[str]:
    """Threads of every engine and instruction set of the cpu kernels for the length of the block; gives the set.

    Args:
        threads: None leaves torch's number.
        isa: None takes the best.

    Raises:
        ConfigError: fewer than one thread, or an instruction set that does not run here.
        BackendError: the extension was not built.
    """
    sets = _native.instruction_sets()
    if isa is not None and isa not in sets:
        raise ConfigError(f"isa = {isa!r}: this processor runs {', '.join(sets)}; leave it out for the best")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads = {threads}: expected at least 1")
    threads_before, cpu_before = torch.get_num_threads(), BACKENDS["cpu"]
    try:
        keep_freed_memory()  # for every engine, and for good: glibc cannot go back to thresholds that adapt
        torch.set_num_threads(threads or threads_before)
        if isa is not None:
            BACKENDS["cpu"] = CpuBackend(isa)
        yield isa or next(iter(sets))
    finally:
        torch.set_num_threads(threads_before)
        BACKENDS["cpu"] = cpu_before
