"""What an engine is asked: bytes in, bytes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedsparse.measure import Reading

__all__ = ["Engine", "Reply", "Request"]


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
    """

    client_id: int
    blob: bytes | None
    reason: str
    seconds: Reading
    peak_bytes: Reading


class Engine(Protocol):
    """Runs clients. Methods never see which one; all carry the same bytes."""

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Delivers every request and collects the replies, in the order of the requests."""
        ...

    def memories(self) -> bytes:
        """State of all clients, for a checkpoint."""
        ...

    def restore(self, memories: bytes) -> None:
        """Puts back what `memories` returned."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...
