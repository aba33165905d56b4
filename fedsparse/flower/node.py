"""A Flower node's half of the engine: serves the clients that are dealt to it.

Flower may start a process for every message, so nothing is taken for granted but the node's state, which Flower hands
to each. There lies what the node's clients keep now and what they kept one exchange before. A request names, by its
token, what the server knows the client to keep: after an answer that got lost on its way, the client goes on from
before it, as if it had never been asked.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsparse.errors import ConfigError, WireError
from fedsparse.federated.client import ClientHost
from fedsparse.federated.engines.base import Request
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import Kept
from fedsparse.flower.kept import pack_kept, pack_topology, token, unpack_kept, unpack_topology
from fedsparse.flower.messages import Scalar, content, notes_of, packed_bytes
from fedsparse.pattern import Topology

__all__ = ["Desk", "exchange", "hand_over", "hello", "take_back"]

_TOPOLOGIES = "fedsparse-topologies"
_CLIENT = "fedsparse-client-"
_LOST = "the node no longer has what the client kept; it starts afresh the next time"


class Desk:
    """What a process of a node serves clients with: one network, and the topologies it has at hand.

    Attributes:
        host: serves them.
        topologies: those of the present client.
    """

    def __init__(self, plan: Plan) -> None:
        self.topologies = _AtHand()
        self.host = ClientHost(plan, self.topologies)


class _AtHand:
    """The few topologies that one exchange needs, in memory."""

    def __init__(self) -> None:
        self._known: dict[str, Topology] = {}

    def add(self, topology: Topology) -> None:
        self._known[topology.digest] = topology

    def get(self, digest: str) -> Topology:
        return self._known[digest]

    def lay_out(self, digest: str, unpack: Callable[[], Topology]) -> None:
        """Puts the topology of a digest at hand, and all others away; no digest means none."""
        found = self._known.get(digest) if digest else None
        self._known = {}
        if digest:
            self.add(unpack() if found is None else found)


class _Notes:
    """What a node's clients keep, in the state that Flower keeps for the node."""

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def recall(self, client_id: int, known: str) -> Kept | None:
        """What the server knows a client by its token to keep; None when it is here no more."""
        if not known:
            return Kept()
        versions = [*self._versions(client_id)]
        return next((kept for kept in versions if token(kept) == known), None)

    def note(self, client_id: int, before: Kept, after: Kept, topology: Topology | None) -> None:
        """A client's present state and the one before it, with the topology it holds where that may be new."""
        entry = {"held": after.held, "memory": after.memory, "held-before": before.held, "memory-before": before.memory}
        self._state[f"{_CLIENT}{client_id}"] = ConfigRecord(entry)
        known = dict(self._state.config_records.get(_TOPOLOGIES, {}))
        if topology is not None and topology.digest not in known:
            known[topology.digest] = pack_topology(topology)
        used = self._used()
        self._state[_TOPOLOGIES] = ConfigRecord({digest: known[digest] for digest in known if digest in used})

    def topology(self, digest: str) -> Topology:
        """A topology that some client of the node holds."""
        return unpack_topology(self._state.config_records[_TOPOLOGIES][digest])

    def _versions(self, client_id: int) -> list[Kept]:
        entry = self._state.config_records.get(f"{_CLIENT}{client_id}")
        if entry is None:
            return []
        return [Kept(entry["held"], entry["memory"]), Kept(entry["held-before"], entry["memory-before"])]

    def _used(self) -> set[str]:
        clients = [int(name.removeprefix(_CLIENT)) for name in self._state if name.startswith(_CLIENT)]
        return {kept.held for client in clients for kept in self._versions(client)}


def hello(message: Message, context: Context) -> Message:
    """Which share of the clients this node serves.

    Raises:
        ConfigError: the node was started without saying so.
    """
    settings = context.node_config
    if not {"partition-id", "num-partitions"} <= settings.keys():
        raise ConfigError(
            f"the node's configuration has {', '.join(settings) or 'no key'}: expected partition-id and "
            'num-partitions; start it with --node-config "partition-id=0 num-partitions=2"'
        )
    notes = {"partition": int(settings["partition-id"]), "partitions": int(settings["num-partitions"])}
    return Message(content(None, notes), reply_to=message)


def exchange(message: Message, context: Context, desk: Desk) -> Message:
    """Serves a client one request of the rounds."""
    asked, notes = notes_of(message), _Notes(context.state)
    request = Request(asked["client"], packed_bytes(message), asked["weights-back"])
    before = notes.recall(request.client_id, asked["token"])
    if before is None:
        return Message(content(None, {"token": "", "held": "", "remembers": False, "reason": _LOST}), reply_to=message)
    desk.topologies.lay_out(before.held, lambda: notes.topology(before.held))
    reply, after = desk.host.serve(request, before)
    notes.note(request.client_id, before, after, desk.topologies.get(after.held) if after.held else None)
    answer: dict[str, Scalar] = {
        "token": token(after),
        "held": after.held,
        "remembers": bool(after.memory),
        "reason": reply.reason,
    }
    for name, reading in (("seconds", reply.seconds), ("peak", reply.peak_bytes)):
        answer |= {f"{name}-source": reading.source}
        answer |= {} if reading.value is None else {name: float(reading.value)}
    return Message(content(reply.blob, answer), reply_to=message)


def hand_over(message: Message, context: Context) -> Message:
    """What a client keeps, for a checkpoint.

    Raises:
        WireError: it is here no more.
    """
    asked, notes = notes_of(message), _Notes(context.state)
    kept = notes.recall(asked["client"], asked["token"])
    if kept is None:
        raise WireError(_LOST)
    blob = pack_kept(kept, notes.topology(kept.held) if kept.held else None)
    return Message(content(blob, {"token": token(kept)}), reply_to=message)


def take_back(message: Message, context: Context) -> Message:
    """Gives a client what it kept when a checkpoint was written."""
    kept, topology = unpack_kept(packed_bytes(message))
    _Notes(context.state).note(notes_of(message)["client"], kept, kept, topology)
    return Message(content(None, {"token": token(kept)}), reply_to=message)
