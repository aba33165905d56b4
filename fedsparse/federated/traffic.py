"""What the exchanges of a round cost: their sums, and the line of clients.jsonl for each reply."""

from dataclasses import dataclass
from typing import Any

from fedsparse import energy
from fedsparse.federated.engines.base import Reply

__all__ = ["Traffic", "ignored", "settled"]


@dataclass
class Traffic:
    """Sums over the exchanges of one round.

    Attributes:
        bytes_down, bytes_up: lengths of the encoded messages.
        bytes_down_dense, bytes_up_dense: what dense federated averaging sends for the same trainings: the length of
            the encoded dense network, for each client that was asked to train and each that answered.
        client_seconds: time inside clients.
        exchange_seconds: time inside the engine.
        joules: of the run's device in that time; None where it was unavailable, never a partial sum.
        peak_bytes: largest peak of a client, None where memory cannot be counted.
        samples: training samples of the clients that answered a training.
        answered, failed: clients that did and did not deliver a usable training.
        asks_failed: requests of other exchanges without a usable answer.
        retried: requests that the engine gave to another worker.
        ignored: replies that answer nothing: a client's second one, a late one, one of a client not asked.
        folded: clients that took steps of a training together with others.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    bytes_down_dense: int = 0
    bytes_up_dense: int = 0
    client_seconds: float = 0.0
    exchange_seconds: float = 0.0
    joules: float | None = 0.0
    peak_bytes: int | None = None
    samples: int = 0
    answered: int = 0
    failed: int = 0
    asks_failed: int = 0
    retried: int = 0
    ignored: int = 0
    folded: int = 0

    def add_joules(self, meter: energy.Meter) -> None:
        """The energy of one exchange."""
        try:
            self.joules = None if self.joules is None else self.joules + meter.joules()
        except energy.Unavailable:
            self.joules = None

    def add(self, reply: Reply, sent: int, *, usable: bool, samples: int, dense_bytes: int | None) -> None:
        """One request, settled.

        Args:
            reply: to the request.
            sent: bytes of the request.
            usable: whether the reply is.
            samples: of the client.
            dense_bytes: of the encoded dense network if the client was asked to train; None if to do something else.
        """
        self.bytes_down += sent
        self.bytes_up += _length(reply)
        self.client_seconds += reply.seconds.value or 0.0
        if reply.peak_bytes.value is not None:
            self.peak_bytes = max(self.peak_bytes or 0, int(reply.peak_bytes.value))
        self.retried += reply.retries
        self.folded += reply.steps_folded > 0
        if dense_bytes is None:
            self.asks_failed += not usable
            return
        self.bytes_down_dense += dense_bytes
        self.bytes_up_dense += dense_bytes if reply.blob is not None else 0
        self.answered += usable
        self.failed += not usable
        self.samples += samples if usable else 0

    def add_ignored(self, bytes_up: int) -> None:
        """A reply that answers nothing: its bytes travelled, and that is all."""
        self.ignored += 1
        self.bytes_up += bytes_up


def settled(
    round: int, reply: Reply, sent: int, *, training: bool, usable: bool, samples: int, reason: str
) -> dict[str, Any]:
    """The record of the reply that settles a request of `sent` bytes; `reason` says why it is not usable."""
    exchange, status = "train" if training else "ask", "ok" if usable else "failed"
    return _record(round, reply, exchange=exchange, status=status, samples=samples, sent=sent, reason=reason)


def ignored(round: int, reply: Reply) -> dict[str, Any]:
    """The record of a reply that answers nothing, for its own reason."""
    return _record(round, reply, exchange="none", status="ignored", samples=0, sent=0, reason=reply.reason)


def _record(
    round: int, reply: Reply, *, exchange: str, status: str, samples: int, sent: int, reason: str
) -> dict[str, Any]:
    return {
        "round": round,
        "client": reply.client_id,
        "exchange": exchange,
        "samples": samples,
        "status": status,
        "reason": reason,
        "bytes_down": sent,
        "bytes_up": _length(reply),
        "seconds": reply.seconds.value,
        "peak_bytes": reply.peak_bytes.value,
        "retries": reply.retries,
        "steps_folded": reply.steps_folded,
        "alone": reply.alone,
    }


def _length(reply: Reply) -> int:
    return 0 if reply.blob is None else len(reply.blob)
