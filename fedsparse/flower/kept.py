"""What a client keeps, as it travels for a checkpoint, and the token by which both sides speak of it."""

import hashlib

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.federated.store import Kept
from fedsparse.pattern import Topology
from fedsparse.wire import MOST_BYTES, Payload

__all__ = ["pack_kept", "pack_topology", "token", "unpack_kept", "unpack_topology"]


def token(kept: Kept) -> str:
    """Short hash of what a client keeps; empty while it keeps nothing."""
    if kept == Kept():
        return ""
    return hashlib.blake2b(f"{kept.held} ".encode() + kept.memory, digest_size=12).hexdigest()


def pack_kept(kept: Kept, topology: Topology | None) -> bytes:
    """What a client keeps as one message, with the topology that it holds."""
    memory = dict(wire.decode(kept.memory).extras) if kept.memory else {}
    held: dict[str, wire.Section] = {} if topology is None else {"topology": topology}
    return wire.encode(Payload("kept", 0, extras={"memory": memory, **held}))


def unpack_kept(blob: bytes, *, most_bytes: int = MOST_BYTES) -> tuple[Kept, Topology | None]:
    """What `pack_kept` was given.

    Args:
        blob: the message.
        most_bytes: see `wire.decode`.

    Raises:
        WireError: the bytes are damaged, or no such message.
    """
    extras = wire.decode(blob, most_bytes=most_bytes).extras
    memory, topology = extras.get("memory"), extras.get("topology")
    if type(memory) is not dict or not (topology is None or isinstance(topology, Topology)):
        raise WireError(
            f"a message of {', '.join(extras) or 'nothing'}: expected the memory of a client, and a topology"
        )
    content = wire.encode(Payload("memory", 0, extras=memory)) if memory else b""
    return Kept("" if topology is None else topology.digest, content), topology


def pack_topology(topology: Topology) -> bytes:
    """A topology as one message."""
    return wire.encode(Payload("topology", 0, extras={"topology": topology}))


def unpack_topology(blob: bytes) -> Topology:
    """What `pack_topology` was given.

    Raises:
        WireError: the bytes are damaged, or no such message.
    """
    found = wire.decode(blob).extras.get("topology")
    if not isinstance(found, Topology):
        raise WireError("a message without the topology that it should hold")
    return found
