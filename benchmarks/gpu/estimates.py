"""What the counts say of work besides single products and of whole steps: each beside the dense network's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.gpu.activation_work import dense_pack, pack_global, pack_rows, pack_short_rows
from benchmarks.gpu.cases import sizes
from benchmarks.gpu.kinds import of_device
from benchmarks.gpu.prune_work import dense_prune, lists, prune, rebuild
from benchmarks.gpu.regrow_work import dense_regrow, regrow
from benchmarks.gpu.roofline import Work, loads, seconds, sizes_of
from benchmarks.gpu.step_work import convolutions, dense_step, sparse_step

__all__ = ["CALL", "Estimate", "StepEstimate", "besides", "limit", "steps"]

CALL = 7.5e-6  # seconds that a kernel costs which Python launches, the middle of the design's 5 to 10 us
_DENSITY, _SWAPPED, _GROWN, _KEEP = 0.1, 0.1, 0.01, 0.5
_BATCHES = (32, 128)
_PRECISIONS = ("bf16", "fp32", "tf32")
_WIDE, _NARROW = (64, 32), (512, 4)  # channels and pixels along a side, of the first and of the last stage


@dataclass(frozen=True)
class Estimate:
    """Work of ours, and what a dense network does for the same.

    Attributes:
        what: in words.
        ours, dense: kernels.
        wanted: times faster, or the time that was set as a target; empty where none was.
    """

    what: str
    ours: Sequence[Work]
    dense: Sequence[Work]
    wanted: str = ""


@dataclass(frozen=True)
class StepEstimate:
    """A training step of so many clients, one after the other where they are dense.

    Attributes:
        what: in words.
        batch: samples of each client.
        ours, dense: kernels; of one client where dense.
        clients: whose steps these are.
        wanted: times faster than dense graphs, and than dense calls from Python; None where no target was set.
    """

    what: str
    batch: int
    ours: Sequence[Work]
    dense: Sequence[Work]
    clients: int = 1
    wanted: tuple[float | None, float | None] = (None, None)

    @property
    def dense_eager(self) -> float:
        """Seconds of the dense steps called from Python: what the device needs, or the calls."""
        return self.clients * max(seconds(self.dense), len(self.dense) * CALL)


def limit(works: Sequence[Work]) -> tuple[str, float]:
    """What most of the time is spent waiting for, and that share of it."""
    parts: dict[str, float] = {}
    for work in works:
        (longest, spent) = max(loads(work).items(), key=lambda load: load[1])
        parts[longest] = parts.get(longest, 0.0) + spent
    name = max(parts, key=lambda part: parts[part])
    return name, parts[name] / math.fsum(parts.values())


def besides() -> Iterator[Estimate]:
    """Masks searched, pruned and listed, activations packed."""
    yield from _regrow()
    yield from _prune()
    yield from _pack()


def _regrow() -> Iterator[Estimate]:
    """Every layer's search for a hundredth of its positions."""
    for batch in _BATCHES:
        cases = list(convolutions(batch))
        counts = [max(round(_GROWN * sizes_of(case)[2]), 1) for case in cases]
        for precision in _PRECISIONS:
            ours = [work for case, k in zip(cases, counts, strict=True) for work in regrow(case, k, precision)]
            dense = [work for case, k in zip(cases, counts, strict=True) for work in dense_regrow(case, k, precision)]
            yield Estimate(f"regrow, B {batch}, {precision}", ours, dense, "3")


def _prune() -> Iterator[Estimate]:
    """A tenth of the kept weights of all layers at density 0.1 exchanged."""
    dense = [sizes_of(case)[2] for case in convolutions(1)]
    kept = [round(_DENSITY * size) for size in dense]
    exchanged = [*prune(sum(kept)), *rebuild(kept, _SWAPPED)]
    theirs = dense_prune(dense, _DENSITY, _SWAPPED)
    yield Estimate("prune", prune(sum(kept)), theirs)
    yield Estimate("prune + rebuild", exchanged, theirs)
    yield Estimate("prune + rebuild + lists of strips", [*exchanged, *lists(kept)], theirs, "20, 100 us")


def _pack() -> Iterator[Estimate]:
    """Half of a convolution's input kept as bfloat16."""
    batch = _BATCHES[-1]
    for channels, side in (_WIDE, _NARROW):
        size = channels * side**2
        for precision in ("fp32", "bf16"):
            name = f"pack {batch} x {channels} x {side} x {side}, {precision}"
            tile, whole = dense_pack(batch, size, _KEEP, precision), dense_pack(1, batch * size, _KEEP, precision)
            yield Estimate(f"{name}, tile", pack_rows(batch, size, _KEEP, precision), tile, "8")
            if (channels, side) == _NARROW:
                yield Estimate(f"{name}, tile, Triton", pack_short_rows(batch, size, _KEEP, precision), tile, "8")
            yield Estimate(f"{name}, global", pack_global(batch * size, _KEEP, precision), whole, "5")


def steps() -> Iterator[StepEstimate]:
    """Whole steps of every kind whose work is counted, at density 0.1, and those of several clients at once; before
    them what a dense network gains by our norms alone."""
    for precision in _PRECISIONS:
        for batch in _BATCHES:
            fused, dense = dense_step(batch, precision, fused=True), dense_step(batch, precision)
            yield StepEstimate(f"dense, norms fused, {precision}", batch, fused, dense)
    kinds = [(kind.name, kind.work, p) for kind in of_device("cuda") if kind.work for p in kind.precisions]
    clients = sizes(cpu=False).clients
    for name, count, precision in kinds:
        what = f"{name} {precision} density {_DENSITY:g}"
        blocks = name.startswith("block") and precision == "bf16"
        for batch in _BATCHES:
            ours, dense = sparse_step(batch, precision, _DENSITY, count), dense_step(batch, precision)
            wanted = (2.5, 8.0) if blocks and batch == _BATCHES[0] else (None, None)
            yield StepEstimate(what, batch, ours, dense, 1, wanted)
            if batch == _BATCHES[0]:
                together = sparse_step(batch, precision, _DENSITY, count, clients)
                yield StepEstimate(what, batch, together, dense, clients, (5.0 if blocks else None, None))
