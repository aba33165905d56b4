"""Single layers, forward and backward to input and weights: fedsparse against every other engine.

What is timed has been checked against float64 first.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedsparse.bench.cases import LINEAR, POINTWISE, STRIDED, SYMMETRIC, LayerCase, Operands, at_densities
from fedsparse.bench.machine import computing_with, multiply_add_peak
from fedsparse.bench.peers import DENSE, PEERS, WAYS, Engine, Trial, status
from fedsparse.bench.report import Report, TextTable, Watch, milliseconds, percent, provenance, times_faster
from fedsparse.bench.timing import Timing, interleave
from fedsparse.errors import BackendError, ConfigError
from fedsparse.pattern.granularity import parse

__all__ = [
    "CASES",
    "DENSITIES",
    "QUICK",
    "TOLERANCE",
    "BreakEven",
    "KernelRow",
    "KernelSettings",
    "break_even",
    "crossing",
    "measure",
    "measure_case",
]

CASES = (*SYMMETRIC, *STRIDED, *POINTWISE, *LINEAR)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SCANNED = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
# Above the 3e-6 that torch's own weight gradient of 65,536 terms is off by, far below what a bug gives.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class KernelSettings:
    """What is measured, and how often.

    Attributes:
        cases: layers; their own densities and batches are replaced.
        densities: kept shares of the weights.
        granularity: units that are kept at random, which has no share of its own; replaces that of the cases.
        batch: samples.
        rounds: turns of every engine that are counted.
        scanned: ascending densities at which the break-even density is looked for; none leaves it out.
        threads: of every engine; None leaves torch's number.
        isa: instruction set of the cpu kernels; None takes the best.
    """

    cases: Sequence[LayerCase] = CASES
    densities: Sequence[float] = DENSITIES
    granularity: str = "element"
    batch: int = 64
    rounds: int = 15
    scanned: Sequence[float] = SCANNED
    threads: int | None = None
    isa: str | None = None


# A look at whether everything works: seconds, and figures that say little.
QUICK = KernelSettings(cases=(*SYMMETRIC[1:], *LINEAR[:2]), densities=(0.1,), batch=16, rounds=3, scanned=())


@dataclass(frozen=True)
class KernelRow:
    """One case in every engine.

    Attributes:
        case: the layer.
        nnz: kept weights.
        seconds: times, by engine and its way to compute.
        best: fastest median of each engine.
        ratios: for each way to use fedsparse, the best time of each peer over its own.
        peak_fraction: for each way to use fedsparse, its share of the machine's arithmetic.
        skipped: engines that were not timed, and why.
        wrong: what was not timed because it computes something else, by engine and its way to compute.
    """

    case: LayerCase
    nnz: int
    seconds: Mapping[str, Timing]
    best: Mapping[str, float]
    ratios: Mapping[str, Mapping[str, float]]
    peak_fraction: Mapping[str, float]
    skipped: Mapping[str, str]
    wrong: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"name": str(self.case), **asdict(self)}


@dataclass(frozen=True)
class BreakEven:
    """Up to which density one way to use fedsparse beats the best dense layer.

    Attributes:
        shape: the layer.
        way: how fedsparse is used.
        density: where the times cross; None where they do not.
        outside: `below` or `above` the scanned densities, where they do not cross.
        scan: densities and dense time over sparse time.
    """

    shape: str
    way: str
    density: float | None
    outside: str | None
    scan: Sequence[tuple[float, float]]


def measure(settings: KernelSettings, *, watch: Watch = lambda _: None) -> Report:
    """Times every case at every density.

    Raises:
        ConfigError: a setting out of range.
        PatternError: no such granularity.
        BackendError: fedsparse computes a wrong answer, or its extension was not built.
    """
    if parse(settings.granularity).share is not None:
        raise ConfigError(
            f"granularity = {settings.granularity!r} leaves no choice of a density; measure 'element', 'vector:G', "
            "'block:B' or 'channel'"
        )
    settings = replace(settings, cases=[replace(case, granularity=settings.granularity) for case in settings.cases])
    cases = at_densities(settings.cases, settings.densities, batch=settings.batch)
    with computing_with(threads=settings.threads, isa=settings.isa) as isa:
        peak = multiply_add_peak(isa)
        rows = []
        for case in cases:
            rows.append(measure_case(case, rounds=settings.rounds, peak=peak))
            watch(_in_short(rows[-1]))
        found = list(_break_evens(settings, watch))
        origin = provenance(
            "wall clock, medians and quartiles of interleaved rounds; ratios are a peer's median over fedsparse's",
            instruction_set=isa,
            multiply_add_flops_per_second=peak,
        )
    means = geometric_means(rows)
    return Report(
        "kernels",
        origin,
        {key: value for key, value in asdict(settings).items() if key != "cases"},
        [status(peer) for peer in PEERS],
        [row.to_json() for row in rows],
        {"geometric_means": means, "break_even": [asdict(one) for one in found]},
        [f"{name} on {row.case}: left out, {why}" for row in rows for name, why in row.wrong.items()],
        [*_row_tables(rows), *_mean_tables(means), *_break_even_tables(found)],
    )


# ---- one case
def measure_case(
    case: LayerCase,
    *,
    rounds: int,
    peak: float = math.nan,
    ways: Sequence[Engine] = WAYS,
    peers: Sequence[Engine] = PEERS,
) -> KernelRow:
    """Checks and times one case in every engine that can compute it.

    Raises:
        BackendError: fedsparse computes a wrong answer.
    """
    operands = Operands(case)
    skipped, wrong, trials = _prepared(operands, ways, peers)
    seconds, best = _timed(trials, rounds)
    flops = case.flops(operands.nnz)
    names = [way.name for way in ways if way.name in best]
    return KernelRow(
        case,
        operands.nnz,
        seconds,
        best,
        {way: {peer.name: best[peer.name] / best[way] for peer in peers if peer.name in best} for way in names},
        {way: flops / best[way] / peak for way in names},
        skipped,
        wrong,
    )


Trials = dict[str, dict[str, Trial]]


def _prepared(
    operands: Operands, ways: Sequence[Engine], peers: Sequence[Engine]
) -> tuple[dict[str, str], dict[str, str], Trials]:
    """Reasons against engines, errors of trials, and by engine the trials that give the right answer."""
    skipped: dict[str, str] = {}
    wrong: dict[str, str] = {}
    trials: Trials = {}
    for engine in (*ways, *peers):
        reason = engine.available() or engine.refuse(operands.case)
        if reason is not None:
            skipped[engine.name] = reason
            continue
        try:
            right, errors = _checked(engine, operands)
        except Exception as error:  # whatever a peer raises on a machine or with a torch it was not made for
            if engine in ways:
                raise
            skipped[engine.name] = f"fails with {type(error).__name__}: {error}"
            continue
        if errors and engine in ways:
            raise BackendError(f"{engine.name} cannot be timed on {operands.case}: {'; '.join(errors.values())}")
        wrong |= errors
        if right:
            trials[engine.name] = right
        else:
            skipped[engine.name] = "; ".join(errors.values())
    return skipped, wrong, trials


def _checked(engine: Engine, operands: Operands) -> tuple[dict[str, Trial], dict[str, str]]:
    """Trials of an engine that give the right answer, and what is wrong with the others, by their full name."""
    right: dict[str, Trial] = {}
    errors: dict[str, str] = {}
    for name, trial in engine.build(operands).items():
        error = trial.results().error(operands.truth)
        if error <= TOLERANCE:
            right[name] = trial
        else:
            errors[_full(engine.name, name)] = (
                f"wrong answer: relative error {error:.1e} against float64 (at most {TOLERANCE:g})"
            )
    return right, errors


def _full(engine: str, name: str) -> str:
    return f"{engine} {name}".strip()


def _timed(trials: Trials, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Times of all trials, and the best median of each engine."""
    flat = {_full(engine, name): trial for engine, built in trials.items() for name, trial in built.items()}
    seconds = interleave(flat, rounds=rounds)
    best = {e: min(seconds[_full(e, name)].median for name in built) for e, built in trials.items()}
    return seconds, best


def _in_short(row: KernelRow) -> str:
    parts = (f"{way} {times_faster(ratios.get(DENSE.name))}" for way, ratios in row.ratios.items())
    return f"{row.case}: {', '.join(parts)}"


# ---- over several cases
def geometric_means(rows: Iterable[KernelRow]) -> list[dict[str, object]]:
    """Mean ratio over the 3x3 convolutions of stride 1, for each density, way and peer that has all of them."""
    alike = [row for row in rows if (row.case.kernel, row.case.stride) == (3, 1) and row.case.size is not None]
    means: list[dict[str, object]] = []
    for density, group in itertools.groupby(alike, key=lambda row: row.case.density):
        same = list(group)
        for way, peer in _pairs(same[0]):
            ratios = [row.ratios[way][peer] for row in same if peer in row.ratios.get(way, {})]
            if len(ratios) == len(same):
                mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
                means.append({"density": density, "way": way, "peer": peer, "ratio": mean, "shapes": len(ratios)})
    return means


def _pairs(row: KernelRow) -> list[tuple[str, str]]:
    return [(way, peer) for way, ratios in row.ratios.items() for peer in ratios]


# ---- break-even
def _break_evens(settings: KernelSettings, watch: Watch) -> Iterable[BreakEven]:
    for case in settings.cases:
        if settings.scanned and case.kernel == 3 and case.size is not None:
            for way in (way for way in WAYS if way.refuse(case) is None):
                found = break_even(replace(case, batch=settings.batch), way, settings.scanned, rounds=settings.rounds)
                watch(f"{case.shape}: {way.name} breaks even at {_density(found)}")
                yield found


def break_even(case: LayerCase, way: Engine, scanned: Sequence[float], *, rounds: int) -> BreakEven:
    """Raises the density along `scanned` until the dense layer wins twice: once may be noise."""
    scan: list[tuple[float, float]] = []
    for density in scanned:
        row = measure_case(replace(case, density=density), rounds=rounds, ways=[way], peers=[DENSE])
        scan.append((density, row.ratios[way.name][DENSE.name]))
        if len(scan) > 1 and max(ratio for _, ratio in scan[-2:]) < 1:
            break
    return BreakEven(case.shape, way.name, *crossing(scan), scan)


def crossing(scan: Sequence[tuple[float, float]]) -> tuple[float | None, str | None]:
    """Density from which on the ratios along `scan` are below 1, or on which side of the scan it lies.

    Interpolated between two points; the logarithm of the ratio is taken as linear between them.
    """
    wins = [place for place, (_, ratio) in enumerate(scan) if ratio >= 1]
    if not wins:
        return None, "below"
    if wins[-1] == len(scan) - 1:
        return None, "above"
    (won, gain), (lost, loss) = scan[wins[-1]], scan[wins[-1] + 1]
    share = math.log(gain) / (math.log(gain) - math.log(loss))
    return won + share * (lost - won), None


def _density(found: BreakEven) -> str:
    if found.density is not None:
        return f"{found.density:.2f}"
    return f"< {found.scan[0][0]:g}" if found.outside == "below" else f"> {found.scan[-1][0]:g}"


# ---- tables
def _row_tables(rows: Sequence[KernelRow]) -> list[TextTable]:
    ways = [way.name for way in WAYS]
    present = {peer for row in rows for ratios in row.ratios.values() for peer in ratios}
    peers = [peer.name for peer in PEERS if peer.name in present]
    headings = ["layer"]
    for way in ways:
        headings += [f"{way} ms", "peak", *(f"vs {peer}" for peer in peers)]
    return [TextTable("forward + backward, times faster", headings, [_cells(row, ways, peers) for row in rows])]


def _cells(row: KernelRow, ways: Sequence[str], peers: Sequence[str]) -> list[str]:
    cells = [str(row.case)]
    for way in ways:
        cells += [milliseconds(row.best.get(way)), percent(row.peak_fraction.get(way))]
        cells += [times_faster(row.ratios.get(way, {}).get(peer)) for peer in peers]
    return cells


def _mean_tables(means: Sequence[Mapping[str, Any]]) -> list[TextTable]:
    if not means:
        return []
    columns = list(dict.fromkeys((mean["way"], mean["peer"]) for mean in means))
    table: dict[float, dict[tuple[str, str], float]] = {}
    for mean in means:
        table.setdefault(mean["density"], {})[mean["way"], mean["peer"]] = mean["ratio"]
    rows = [[f"{d:g}", *(times_faster(ratios.get(column)) for column in columns)] for d, ratios in table.items()]
    headings = ["density", *(f"{way} vs {peer}" for way, peer in columns)]
    return [TextTable("geometric mean over the 3x3 convolutions of stride 1", headings, rows)]


def _break_even_tables(found: Sequence[BreakEven]) -> list[TextTable]:
    if not found:
        return []
    rows = [[one.shape, one.way, _density(one)] for one in found]
    return [TextTable("break-even density against torch dense", ["layer", "way", "density"], rows)]
