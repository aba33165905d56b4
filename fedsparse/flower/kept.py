"""What a client keeps, as it travels for a checkpoint, and the token by which both sides speak of it."""

import hashlib
from typing import cast

from fedsparse import wire
from fedsparse.federated.store import Kept
from fedsparse.pattern import Topology
from fedsparse.wire import Payload

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


def unpack_kept(blob: bytes) -> tuple[Kept, Topology | None]:
    """What `pack_kept` was given.

    Raises:
        WireError: the bytes are damaged.
    """
    extras = wire.decode(blob).extras
    topology = cast(Topology | None, extras.get("topology"))
    memory = cast(dict[str, wire.Section], extras["memory"])
    content = wire.encode(Payload("memory", 0, extras=memory)) if memory else b""
    return Kept("" if topology is None else topology.digest, content), topology


def pack_topology(topology: Topology) -> bytes:
    """A topology as one message."""
    return wire.encode(Payload("topology", 0, extras={"topology": topology}))


def unpack_topology(blob: bytes) -> Topology:
    """What `pack_topology` was given.

    Raises:
        WireError: the bytes are damaged.
    """
    return cast(Topology, wire.decode(blob).extras["topology"])
