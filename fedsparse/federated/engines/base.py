"""What an engine is asked: bytes in, bytes out; and what becomes of clients that fail, the same in all engines.

    what happens                                  what the run does
    ------------------------------------------    -------------------------------------------------------------------
    client drops out, or answers too late         failed in this round; told everything again the next time
    a late answer comes in a later exchange       ignored, on record; it takes the place of no other
    client answers twice                          the first usable answer counts, the other is ignored, on record
    answer of a client that was not asked         ignored, on record
    download by reference to masks not held       failed; told everything again the next time
    upload by reference to other masks than sent  failed
    NaN or infinity in an upload                  failed
    damaged, truncated or random bytes            failed; in the download as well as in the upload
    client without samples                        failed, its weight in the mean is 0
    loss no longer finite                         failed
    worker killed, hanging or out of memory, or   worker replaced, client retried once, then failed; its bytes count
    raising what is no FedsparseError             once, what it keeps is as before (`inline` has no worker to lose: an
                                                  error that is no FedsparseError ends the run, with its traceback;
                                                  on `flower` a node is no worker of ours: see `flower.engine`)
    fewer usable answers than `min_clients`       ClientError; the run resumes from the last checkpoint
    late or second answer in another part of an   ignored, on record
    exchange with a large cohort
    disk full, or its folder not writable         CheckpointError that names the file; resumes from the last checkpoint

A client that failed keeps its memory of before the exchange. `clients.jsonl` has a line with the reason for every
failed and every ignored answer; `metrics.jsonl` counts `clients_failed` (trainings), `asks_failed` (other exchanges),
`clients_retried` and `replies_ignored`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedsparse.measure import Reading

__all__ = ["Engine", "Reply", "Request", "unanswered"]


@dataclass(frozen=True)
class Request:
    """One encoded message for one client.

    Attributes:
        client_id: which client.
        blob: the message.
        weights_back: whether the answer carries the trained weights; part of a task's contract, so it costs no bytes.
    """

    client_id: int
    blob: bytes
    weights_back: bool


@dataclass(frozen=True)
class Reply:
    """What came back from one client.

    Attributes:
        client_id: which client.
        blob: its encoded answer, or None after a failure.
        reason: why there is none.
        seconds: of the client's work, decoding and encoding included.
        peak_bytes: most memory at any moment of it, the network included.
        retries: how often the engine gave the client to another worker.
        steps_folded: steps of its training that were taken together with other clients; see `cohort.CohortHost`.
        alone: why none were, of a client that trained on an engine that folds.
    """

    client_id: int
    blob: bytes | None
    reason: str
    seconds: Reading
    peak_bytes: Reading
    retries: int = 0
    steps_folded: int = 0
    alone: str = ""


def unanswered(request: Request, reason: str, *, retries: int = 0) -> Reply:
    """The reply of a client that nothing came back from."""
    seconds, peak = Reading(None, "s", "unavailable"), Reading(None, "B", "unavailable")
    return Reply(request.client_id, None, reason, seconds, peak, retries)


class Engine(Protocol):
    """Runs clients. Methods never see which one; all carry the same bytes and give the same bits.

    The one exception is `inline` with a `cohort_batch` above 1, whose numbers differ by the order of sums.

    A large cohort is asked in several exchanges, one after the other, so that the server never holds the messages of
    all of it; see `server.AT_ONCE`. Workers and nodes that are done with theirs wait for the slowest of each.

    Results depend on the number of threads that torch computes with: a client has `plan.threads` of them in every
    engine.
    """

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Delivers every request and collects the replies, in the order of the requests."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what clients keep to a new folder, for a checkpoint."""
        ...

    def restore(self, folder: Path) -> None:
        """Puts back what `save` wrote."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...
