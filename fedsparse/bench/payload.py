"""Messages with the weights of ResNet-18: bytes, and how fast they are written and read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from fedsparse.bench.cases import at_densities
from fedsparse.bench.machine import computing_with
from fedsparse.bench.report import Report, TextTable, Watch, milliseconds, provenance
from fedsparse.bench.timing import Timing, interleave
from fedsparse.errors import WireError
from fedsparse.models import resnet18
from fedsparse.nn import read_weights, sparsify
from fedsparse.pattern import Weights
from fedsparse.wire import Payload, decode, encode

__all__ = ["DENSITIES", "QUICK", "PayloadRow", "PayloadSettings", "measure"]

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)


@dataclass(frozen=True)
class PayloadSettings:
    """What is measured, and how often.

    Attributes:
        densities: kept shares of the parameters; the dense network is always measured as well.
        rounds: messages of every kind that are counted.
        threads: None leaves torch's number.
    """

    densities: Sequence[float] = DENSITIES
    rounds: int = 15
    threads: int | None = None


# A look at whether everything works.
QUICK = PayloadSettings(densities=(0.1,), rounds=2)


@dataclass(frozen=True)
class PayloadRow:
    """One kind of message.

    Attributes:
        name: of the network in it.
        known: whether the receiver holds the patterns, so that the message only names them.
        bytes: length of the message.
        of_dense: that length over the dense network's.
        encode: seconds to write it.
        decode: seconds to read it.
        encode_mb_per_s: megabytes (10^6) of message written in a second.
        decode_mb_per_s: megabytes of message read in a second.
    """

    name: str
    known: bool
    bytes: int
    of_dense: float
    encode: Timing
    decode: Timing
    encode_mb_per_s: float = field(init=False)
    decode_mb_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        for name in ("encode", "decode"):
            object.__setattr__(self, f"{name}_mb_per_s", self.bytes / 1e6 / getattr(self, name).median)

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def measure(settings: PayloadSettings, *, watch: Watch = lambda _: None) -> Report:
    """Writes and reads messages of every density, with their patterns and without.

    Raises:
        ConfigError: a setting out of range.
        WireError: a message is not read as it was written.
    """
    at_densities((), settings.densities, batch=1)
    with computing_with(threads=settings.threads):
        torch.manual_seed(0)
        dense = read_weights(resnet18())
        whole = len(encode(Payload("train", 0, dense)))
        rows = [_row("dense", dense, known=False, whole=whole, rounds=settings.rounds)]
        for density in settings.densities:
            weights = read_weights(sparsify(resnet18(), density, distribution="uniform"))
            name = f"uniform {density:g}"
            rows += [_row(name, weights, known=k, whole=whole, rounds=settings.rounds) for k in (False, True)]
            watch(f"{name}: {rows[-2].bytes} bytes, {rows[-1].bytes} with known patterns")
        origin = provenance("wall clock, medians and quartiles of messages in turn; lengths of encoded messages")
    return Report("payload", origin, asdict(settings), [], [row.to_json() for row in rows], tables=[_table(rows)])


def _row(name: str, weights: Weights, *, known: bool, whole: int, rounds: int) -> PayloadRow:
    message, topology = Payload("train", 0, weights), weights.topology
    write = partial(encode, message, known=[topology.digest] if known else [])
    blob = write()
    read = partial(decode, blob, topologies={topology.digest: topology} if known else {})
    _check(weights, read().weights)
    times = interleave({"encode": write, "decode": read}, rounds=rounds)
    return PayloadRow(name, known, len(blob), len(blob) / whole, times["encode"], times["decode"])


def _check(sent: Weights, received: Weights | None) -> None:
    """A message that loses something is not timed."""
    arrived = dict(received.items()) if received is not None else {}
    for name, tensor in sent.items():
        if name not in arrived or not torch.equal(arrived[name], tensor):
            raise WireError(f"{name!r} was not read as it was written")


def _table(rows: Sequence[PayloadRow]) -> TextTable:
    headings = ["network", "patterns", "MB", "of dense", "encode ms", "MB/s", "decode ms", "MB/s"]
    cells = [
        [
            row.name,
            "known" if row.known else "sent",
            f"{row.bytes / 1e6:.2f}",
            f"{row.of_dense:.3f}",
            milliseconds(row.encode.median),
            f"{row.encode_mb_per_s:.0f}",
            milliseconds(row.decode.median),
            f"{row.decode_mb_per_s:.0f}",
        ]
        for row in rows
    ]
    return TextTable("messages with the weights of ResNet-18", headings, cells)
