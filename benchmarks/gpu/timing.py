"""Times of short device work: replayed from a graph, and called one by one.

A timing goes through several copies of the inputs, more bytes than the caches hold, and divides by their number;
the copies also spread the cost of an event or a replay over many calls.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from fedsparse.bench.timing import Timing

__all__ = ["Times", "copies", "measured", "replayed", "seconds_of"]

Call = Callable[[], object]
_WARMUP = 3


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes:
        eager: called from Python.
        graph: replayed from a CUDA graph; None where that was not possible.
        reason: why there is no graph.
    """

    eager: Timing
    graph: Timing | None
    reason: str = ""

    def to_row(self) -> dict[str, object]:
        """Ready for JSON."""
        graph = None if self.graph is None else asdict(self.graph)
        return {"eager": asdict(self.eager), "graph": graph, **({"no_graph": self.reason} if self.reason else {})}


def copies(each: int, rotated: int) -> int:
    """How many inputs of `each` bytes pass through `rotated` bytes; at least 4, at most 64."""
    return min(max(-(-rotated // max(each, 1)), 4), 64)


def measured(calls: Sequence[Call], *, repeats: int, cuda: bool) -> Times:
    """Times of one of `calls`, which do the same on different inputs."""

    def all_of_them() -> list[object]:
        return [call() for call in calls]  # outputs live together, so that none is written over the last

    for _ in range(_WARMUP):
        all_of_them()
    eager = seconds_of(all_of_them, repeats=repeats, cuda=cuda, divide=len(calls))
    if not cuda:
        return Times(eager, None, "no CUDA device")
    try:
        replay = replayed(all_of_them)
    except Exception as error:  # a call that cannot be captured is still timed one by one
        torch.cuda.synchronize()
        return Times(eager, None, f"{type(error).__name__}: {error}"[:300])
    return Times(eager, seconds_of(replay, repeats=repeats, cuda=True, divide=len(calls)))


def replayed(work: Call) -> Call:
    """The work as one CUDA graph; it has been warmed up on the current stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        work()
        torch.cuda.synchronize()
        # Not torch.cuda.graph, which empties the allocator's cache first: a run captures a thousand graphs.
        graph.capture_begin()
        try:
            held = work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture is broken, and must be over before the next
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(side)

    def replay() -> object:
        graph.replay()
        return held  # what the graph writes to stays allocated as long as it can be replayed

    return replay


def seconds_of(work: Call, *, repeats: int, cuda: bool, divide: int = 1) -> Timing:
    """Median and quartiles of `repeats` runs, divided by `divide`; the device's own clock where there is one."""
    run = _device_seconds if cuda else _host_seconds
    return Timing.of([run(work) / divide for _ in range(repeats)])


def _device_seconds(work: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _host_seconds(work: Call) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
