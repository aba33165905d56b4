"""Rounds of a federated run: what the engine and the server cost beside the clients' own work.

Every case runs in a process of its own, so that its memory is its own. The run is small on purpose (fixed masks on a
network of one hidden layer, a few samples a client): clients that work longer hide what is measured here.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsparse.bench.report import Report, TextTable, Watch, milliseconds, percent, provenance
from fedsparse.bench.timing import Timing
from fedsparse.data import Dataset, FederatedDataset
from fedsparse.errors import BackendError, ConfigError
from fedsparse.federated.engines.base import Engine, Reply, Request
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.engines.process import ProcessEngine
from fedsparse.federated.loop import run_rounds
from fedsparse.federated.plan import ClientSettings, Plan
from fedsparse.methods.static import Static

__all__ = ["QUICK", "RoundRow", "RoundSettings", "measure"]

_INPUTS, _HIDDEN, _CLASSES = 784, 256, 10
_TIMEOUT_S = 600.0
_LOOKS = 10  # at the memory, spread over the rounds
_STATUS = Path("/proc/self/status")  # Linux alone has it; elsewhere no memory is given


@dataclass(frozen=True)
class RoundSettings:
    """What is measured, and how often.

    Attributes:
        clients: of a run; each number is a case for each engine.
        engines: `inline` and `process`.
        per_round: most clients of a round.
        rounds: that are counted; two more come before them.
        workers: processes of the engine `process`.
        samples: of a client, which trains on all of them once.
        density: kept share of the weights.
        threads: of each process.
    """

    clients: Sequence[int] = (10, 100, 1000)
    engines: Sequence[str] = ("inline", "process")
    per_round: int = 1000
    rounds: int = 10
    workers: int = 2
    samples: int = 16
    density: float = 0.1
    threads: int = 1


# A look at whether everything works.
QUICK = RoundSettings(clients=(4,), rounds=2, samples=4)
_WARMUP = 2


@dataclass(frozen=True)
class RoundRow:
    """One number of clients on one engine.

    Attributes:
        engine, clients, per_round: of the case.
        seconds: of a round.
        exchange: of them inside the engine.
        server: of them in the server: encoding, decoding, checks, aggregation.
        bare: that the clients worked, summed and divided by the processes that shared them.
        overhead: what the engine takes over the bare work, as a share of it.
        bytes_down, bytes_up: of a round.
        peak_bytes: most memory of the process that has the server above what it had before the run; of `inline` with
            the network that clients train on. None where the system does not say.
        rss_bytes: memory of that process now and then, from the first counted round to the last.
    """

    engine: str
    clients: int
    per_round: int
    seconds: Timing
    exchange: Timing
    server: Timing
    bare: Timing
    bytes_down: int
    bytes_up: int
    peak_bytes: int | None
    rss_bytes: Sequence[int]
    overhead: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "overhead", self.exchange.median / self.bare.median - 1)

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def measure(settings: RoundSettings, *, watch: Watch = lambda _: None) -> Report:
    """Runs every number of clients on every engine.

    Raises:
        ConfigError: a setting out of range.
        BackendError: the process of a case ended without figures.
    """
    _check(settings)
    rows = []
    for engine in settings.engines:
        for clients in settings.clients:
            rows.append(_apart(settings, engine, clients))
            watch(f"{engine}, {clients} clients: {milliseconds(rows[-1].seconds.median)} ms a round")
    origin = provenance(
        "wall clock, medians and quartiles of rounds, each case in a process of its own; memory: resident set; "
        "bytes: lengths of encoded messages",
        threads_of_a_process=settings.threads,
    )
    return Report("round", origin, asdict(settings), [], [row.to_json() for row in rows], tables=[_table(rows)])


def _check(settings: RoundSettings) -> None:
    for name in ("per_round", "rounds", "workers", "samples", "threads"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name} = {getattr(settings, name)}: expected at least 1")
    for clients in settings.clients:
        if clients < 1:
            raise ConfigError(f"clients = {clients}: expected at least 1")
    for engine in settings.engines:
        if engine not in _ENGINES:
            raise ConfigError(f"engine = {engine!r}: expected {' or '.join(_ENGINES)}")


# ---- one case
def _apart(settings: RoundSettings, engine: str, clients: int) -> RoundRow:
    """The figures of a case from a process that has nothing else in memory."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(theirs, settings, engine, clients))
    process.start()
    theirs.close()
    row: RoundRow | None = None
    with ours, suppress(EOFError):
        row = ours.recv()
    process.join()
    if row is None:
        raise BackendError(f"the case of {clients} clients on {engine} ended with exit code {process.exitcode}")
    return row


def _send(pipe: Connection, settings: RoundSettings, engine: str, clients: int) -> None:
    pipe.send(_case(settings, engine, clients))


def _case(settings: RoundSettings, name: str, clients: int) -> RoundRow:
    torch.set_num_threads(settings.threads)
    plan = _plan(settings, clients)
    level = _reset_peak()
    with closing(_ENGINES[name](plan, settings)) as inner:
        engine, looks = _Timed(inner), _Looks(settings.rounds)

        def ended(_: object) -> None:
            looks.look()
            engine.round_ended()

        outcome = run_rounds(plan, engine, folder=None, on_round=ended, should_stop=lambda: False)
    counted = outcome.metrics[_WARMUP:]
    workers = min(plan.per_round, settings.workers) if name == "process" else 1
    peak = _status("VmHWM")
    return RoundRow(
        engine=name,
        clients=clients,
        per_round=plan.per_round,
        seconds=Timing.of([b - a for a, b in zip(looks.times[_WARMUP - 1 :], looks.times[_WARMUP:], strict=False)]),
        exchange=Timing.of(engine.seconds[_WARMUP:-1]),
        server=Timing.of([record["server_seconds"] for record in counted]),
        bare=Timing.of([record["client_seconds"] / workers for record in counted]),
        bytes_down=counted[-1]["bytes_down"],
        bytes_up=counted[-1]["bytes_up"],
        peak_bytes=None if peak is None or level is None else peak - level,
        rss_bytes=looks.memory,
    )


class _Timed:
    """An engine, and how long it took in each round, the last of which has not ended.

    A round may be several exchanges: the server asks large cohorts in parts.
    """

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.seconds = [0.0]

    def round_ended(self) -> None:
        self.seconds.append(0.0)

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        start = time.perf_counter()
        replies = self._inner.exchange(requests)
        self.seconds[-1] += time.perf_counter() - start
        return replies

    def save(self, folder: Path) -> None:
        self._inner.save(folder)

    def restore(self, folder: Path) -> None:
        self._inner.restore(folder)

    def close(self) -> None:
        self._inner.close()


class _Looks:
    """When rounds ended, and how much memory there was in some of them."""

    def __init__(self, rounds: int) -> None:
        self._every = max(1, rounds // _LOOKS)
        self.times: list[float] = []
        self.memory: list[int] = []

    def look(self) -> None:
        self.times.append(time.perf_counter())
        counted = len(self.times) - 1 - _WARMUP
        if counted >= 0 and counted % self._every == 0:
            self.memory.append(_status("VmRSS") or 0)


# ---- the run
def _plan(settings: RoundSettings, clients: int) -> Plan:
    generator = torch.Generator().manual_seed(0)

    def samples(count: int) -> Dataset:
        x = torch.randint(256, (count, _INPUTS), generator=generator, dtype=torch.uint8)
        return Dataset(x, torch.randint(_CLASSES, (count,), generator=generator), _CLASSES)

    train = samples(clients * settings.samples)
    dealt = torch.arange(len(train)).split(settings.samples)
    return Plan(
        method=Static(density=settings.density),
        data=FederatedDataset(train, samples(1), dealt, "noise"),
        build_model=_network,
        rounds=settings.rounds + _WARMUP,
        per_round=min(clients, settings.per_round),
        client=ClientSettings(batch_size=settings.samples, lr=1e-4),
        eval_every=settings.rounds + _WARMUP,
        threads=settings.threads,
    )


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(_INPUTS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _CLASSES))


def _process(plan: Plan, settings: RoundSettings) -> Engine:
    return ProcessEngine(plan, workers=min(plan.per_round, settings.workers), timeout_s=_TIMEOUT_S)


_ENGINES: dict[str, Callable[[Plan, RoundSettings], Engine]] = {
    "inline": lambda plan, _: InlineEngine(plan),
    "process": _process,
}


# ---- memory of this process
def _reset_peak() -> int | None:
    """Memory now, from which on the peak is counted."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int | None:
    """A line of the process's status, in bytes; None where there is none."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None


def _table(rows: Sequence[RoundRow]) -> TextTable:
    headings = [
        "engine",
        "clients",
        "a round",
        "ms",
        "engine ms",
        "bare ms",
        "over bare",
        "server ms",
        "MB down",
        "MB up",
        "peak MB",
    ]
    cells = [
        [
            row.engine,
            str(row.clients),
            str(row.per_round),
            *(milliseconds(timing.median) for timing in (row.seconds, row.exchange, row.bare)),
            percent(row.overhead),
            milliseconds(row.server.median),
            f"{row.bytes_down / 1e6:.2f}",
            f"{row.bytes_up / 1e6:.2f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        ]
        for row in rows
    ]
    return TextTable("rounds of static masks on 784 -> 256 -> 10", headings, cells)
