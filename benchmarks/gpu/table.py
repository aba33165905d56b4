"""A run as the Markdown of benchmarks/RESULTS.md; every figure says whether it was measured or estimated."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.gpu import masks, optimizers, upkeep
from benchmarks.gpu.cases import DENSITIES, sizes
from benchmarks.gpu.estimates import CALL, Estimate, StepEstimate, besides, limit, steps
from benchmarks.gpu.kinds import of_device
from benchmarks.gpu.prune_work import CALLS
from benchmarks.gpu.ratios import Ratio, estimated, measured, network
from benchmarks.gpu.record import Row, RunRecord
from benchmarks.gpu.roofline import H200, Work, seconds
from fedsparse.bench.cases import POINTWISE, STRIDED, SYMMETRIC

__all__ = ["estimates", "markdown", "of_run"]

_MISSING = "-"
_ASSUMED = (
    f"Estimates: {H200.memory / 1e12:g} TB/s of device memory, {H200.cache / 1e12:g} of the cache, "
    f"{H200.shared / 1e12:g} of shared memory, {H200.kernel * 1e6:g} us for the shortest kernel; dense libraries at "
    + ", ".join(f"{H200.dense[p]:.1%} of {H200.flops[p] / 1e12:g} TFLOP/s in {p}" for p in H200.flops)
    + f"; our kernels at {H200.sparse:.0%} of shared memory and of the {H200.mma:.0%} that a warp's instructions "
    "reach of tensor cores. Bytes and instructions are counted in `benchmarks/gpu/work.py`."
)
_BESIDES = ("what", "ours us", "kernels", "most of it", "dense us", "kernels", "times faster", "wanted", "source")
_STEPS = ("step", "B", "ours ms", "kernels", "most of it", "dense graph ms", "kernels", "graph to graph",
          "dense eager ms", "over dense eager", "wanted", "source")  # fmt: skip
_COUNTED = (
    "Besides the products and in whole steps every kernel is counted in `benchmarks/gpu/*_work.py`, replayed from a "
    f"graph on both sides; a dense step called from Python takes {CALL * 1e6:g} us a kernel, or what the device needs. "
    "Not counted in ours is what Python asks torch for when the masks of all layers move: "
    + ", ".join(f"{calls} calls and {waits} waits for the device ({unit})" for unit, (calls, waits) in CALLS.items())
    + "."
)


def markdown(records: Sequence[RunRecord]) -> str:
    """Tables of all runs, or of the estimates where there is none."""
    parts = [part for record in records for part in of_run(record)] or list(estimates())
    return "\n\n".join(parts) + "\n"


def of_run(record: RunRecord) -> Iterator[str]:
    """Everything that a run found, with the estimates beside what they are of."""
    yield f"### Run of {record.started}, `{' '.join(record.command)}`"
    if record.marked:
        yield "\n".join(f"**Marked: {mark}.**" for mark in record.marked)
    yield _machine(record)
    yield _stages(record)
    yield from _section("Ceilings", ("what", "rate", "source"), map(_ceiling, record.rows("ceilings")))
    found = measured(record.rows("dense"), record.rows("ours"))
    yield from _ratio_tables(found)
    yield from _section("Wrong answers, not timed", ("case", "why"), _wrong(record.rows("ours")))
    others = ("topk", *optimizers.OPS, *upkeep.OPS, *masks.OPS)
    whole = [row for stage in ("dense", "ours") for row in record.rows(stage) if row["op"] in others]
    yield from _section("Besides the products", ("what", "graph us", "eager us", "source"), map(_whole, whole))
    steps = record.rows("step")
    headings = (
        "step",
        "B",
        "graph ms",
        "eager ms",
        "graph to graph",
        "eager to eager",
        "MB above",
        "MB saved",
        "source",
    )
    yield from _section("A whole training step of ResNet-18", headings, (_step(row, steps) for row in steps))
    kernels = [row for row in record.rows("build") if row.get("what") == "kernel"]
    yield from _section("Registers", ("kernel", "registers", "spilled bytes", "source"), _registers(kernels))
    yield from _counters(record.rows("counters"))


def estimates() -> Iterator[str]:
    """What the roofline model expects of every kind, without any run."""
    yield "### Estimates, none of them measured"
    yield _ASSUMED
    cases = [replace(case, batch=batch) for batch in (128, 32) for case in (*SYMMETRIC, *STRIDED, *POINTWISE)]
    linear = [case for case in sizes(cpu=False).cases if case.size is None]
    found = [ratio for kind in of_device("cuda") for ratio in estimated(kind, (*cases, *linear), DENSITIES)]
    yield from _ratio_tables(found)
    uncounted = [kind.name for kind in of_device("cuda") if kind.work is None]
    if uncounted:
        yield f"No estimate for {', '.join(uncounted)}: nobody has counted their work yet."
    yield _COUNTED
    yield from _section("Besides the products, estimated", _BESIDES, map(_estimate, besides()))
    yield from _section("A whole step, estimated", _STEPS, map(_step_estimate, steps()))


# ---- tables
def _section(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if lines:
        head = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        yield f"#### {title}"
        yield "\n".join([*head, *lines])


def _machine(record: RunRecord) -> str:
    """What was measured on what, in a line."""
    told = {row["what"]: row for row in record.rows("provenance")}
    parts = [("device", "name"), ("state", "driver_version"), ("libraries", "torch"), ("libraries", "cuda"),
             ("libraries", "cudnn"), ("libraries", "triton"), ("tree", "commit"), ("tree", "sources")]  # fmt: skip
    found = (f"{name} {told.get(what, {}).get(name, 'not asked')}" for what, name in parts)
    return f"Measured on: {'; '.join(_one_line(part, 120) for part in found)}."


def _stages(record: RunRecord) -> str:
    rows = [(s.name, s.status, f"{s.seconds:.0f} of {s.limit:.0f}", str(len(s.rows)), _one_line(s.reason),
             _one_line("; ".join(s.notes))) for s in record.stages]  # fmt: skip
    (_, table) = _section("Stages", ("stage", "status", "s", "rows", "reason", "notes"), rows)
    return table


def _one_line(text: str, most: int = 300) -> str:
    """The end of a text, where an error says what it is."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= most else f"... {flat[-most:]}"


def _ceiling(row: Row) -> tuple[str, ...]:
    return row["what"], f"{row['rate'] / 1e12:.3g} T{row['unit']}" if row["unit"] != "1/s" else _each(row), "measured"


def _each(row: Row) -> str:
    return f"{1e6 / row['rate']:.2f} us each"


def _ratio_tables(ratios: Sequence[Ratio]) -> Iterator[str]:
    """Times faster than dense: the network first, then every layer."""
    for title, found in (("ResNet-18's convolutions, sums", network(ratios)), ("Layers", ratios)):
        densities = sorted({one.density for one in found}, reverse=True)
        headings = ("layer", "B", "kind", "ours", "dense", *(f"{density:g}" for density in densities), "source")
        name = f"{title}: forward + both gradients, times faster than the best dense variant, graph (eager)"
        yield from _section(name, headings, _lines(found, densities))


def _lines(ratios: Sequence[Ratio], densities: Sequence[float]) -> Iterator[tuple[str, ...]]:
    lines: dict[tuple[str, ...], dict[float, Ratio]] = {}
    for one in ratios:
        key = (one.layer, str(one.batch), one.kind, one.precision, one.compared, one.source)
        lines.setdefault(key, {})[one.density] = one
    for (*names, source), cells in lines.items():
        yield (*names, *(_cell(cells.get(density)) for density in densities), source)


def _cell(one: Ratio | None) -> str:
    if one is None:
        return _MISSING
    eager = "" if one.eager is None else f" ({one.eager:.2f})"
    return (_MISSING if one.graph is None else f"{one.graph:.2f}") + eager


def _estimate(one: Estimate) -> tuple[str, ...]:
    """Our work, and the dense network's over it."""
    mine, theirs = seconds(one.ours), seconds(one.dense)
    ours = f"{mine * 1e6:.0f}", str(len(one.ours)), _limit(one.ours)
    return one.what, *ours, f"{theirs * 1e6:.0f}", str(len(one.dense)), _times(theirs / mine), one.wanted, "estimated"


def _step_estimate(one: StepEstimate) -> tuple[str, ...]:
    mine, theirs = seconds(one.ours), one.clients * seconds(one.dense)
    name = one.what + (f", {one.clients} clients" if one.clients > 1 else "")
    wanted = ", ".join(f"{times:g} ({how})" for how, times in zip(("graph", "eager"), one.wanted, strict=True) if times)
    ours = f"{mine * 1e3:.2f}", str(len(one.ours)), _limit(one.ours)
    dense = f"{theirs * 1e3:.2f}", str(one.clients * len(one.dense)), _times(theirs / mine)
    return (
        name,
        str(one.batch),
        *ours,
        *dense,
        f"{one.dense_eager * 1e3:.2f}",
        _times(one.dense_eager / mine),
        wanted,
        "estimated",
    )


def _limit(works: Sequence[Work]) -> str:
    what, share = limit(works)
    return f"{what}, {share:.0%}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}"


def _wrong(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if "wrong" in row:
            yield f"{row['who']} {row['precision']} {row['op']} {row['layer']}", row["wrong"]


def _whole(row: Row) -> tuple[str, ...]:
    return f"{row['op']}: {row['who']}", _time(row.get("graph"), 1e6), _time(row.get("eager"), 1e6), "measured"


def _step(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """A step, and over it the best dense one of the same precision and batch, once for each client."""
    dense = [
        r for r in rows if r["who"] == "dense" and (r["precision"], r["batch"]) == (row["precision"], row["batch"])
    ]
    ratios = []
    for how in ("graph", "eager"):
        best = min((r[how]["median"] for r in dense if r.get(how)), default=None)
        mine = row[how]["median"] if row.get(how) else None
        ratios.append(_MISSING if best is None or mine is None else f"{row['clients'] * best / mine:.2f}")
    memory = [_MISSING if row.get(key) is None else f"{row[key] / 1e6:.0f}" for key in ("peak_bytes", "saved_bytes")]
    name = f"{row['who']} {row['variant']} {row['precision']} density {row['density']:g}"
    name += f", {row['clients']} clients" if row["clients"] > 1 else ""
    times = _time(row.get("graph"), 1e3), _time(row.get("eager"), 1e3)
    return name, str(row["batch"]), *times, *ratios, *memory, "measured"


def _time(timing: dict[str, Any] | None, scale: float) -> str:
    if timing is None:
        return _MISSING
    return f"{timing['median'] * scale:.2f} [{timing['low'] * scale:.2f}, {timing['high'] * scale:.2f}]"


def _registers(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for name in dict.fromkeys(row["kernel"] for row in rows):
        same = [row for row in rows if row["kernel"] == name]
        most = max(row["registers"] for row in same)
        yield name, str(most), str(max(row["spilled"] for row in same)), "measured"


def _counters(rows: Sequence[Row]) -> Iterator[str]:
    names = [name for name in (rows[0] if rows else {}) if name not in ("kernel", "grid")]
    table = (
        [row["kernel"][:60], row["grid"], *(row.get(name, _MISSING) for name in names), "measured"] for row in rows
    )
    yield from _section("Counters", ("kernel", "grid", *names, "source"), table)
