"""Sparse messages for a Flower app that is there already, in two lines:

    client = ClientApp(mods=[sparse_mod])                         # on the nodes
    strategy = SparseStrategy(FedAvg(), masks=fs.masks(model))    # in the ServerApp, whose model is pruned

The app goes on with ordinary arrays: on their way they are one packed array of kept values, and pruned positions are 0
when they arrive, on either side.
"""

from collections.abc import Callable, Iterable, Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsparse.errors import FedsparseError
from fedsparse.flower.kept import pack_topology, unpack_topology
from fedsparse.flower.masked import pack_arrays, unpack_arrays
from fedsparse.flower.messages import packed, unpacked
from fedsparse.pattern import Topology

__all__ = ["SparseStrategy", "sparse_mod"]

_MASKS = "fedsparse-masks"


def sparse_mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Opens packed arrays for the app, and packs its answer under the masks they came with.

    The node keeps the masks in its state; an answer refers to them. Arrays that came unpacked are left alone, and so is
    a record in the answer that lacks a masked array.

    Raises:
        WireError: the message is damaged, or refers to masks that the node does not have.
    """
    content, topology = _opened(message.content, _held(context))
    if topology is None:
        return call_next(message, context)
    context.state[_MASKS] = ConfigRecord({topology.digest: pack_topology(topology)})
    message.content = content
    reply = call_next(message, context)
    if not reply.has_error():
        reply.content = _closed(reply.content, topology, known={topology.digest})
    return reply


class SparseStrategy(Strategy):
    """A strategy of Flower's whose messages carry kept values only.

    Masks travel to a node once; while it answers, their id stands for them. A node that failed or stayed silent is told
    the masks again.

    Args:
        strategy: what chooses nodes and aggregates; it sees ordinary arrays.
        masks: bool tensors of dense shape, by the name of their array.
    """

    def __init__(self, strategy: Strategy, masks: Mapping[str, Tensor]) -> None:
        self._strategy = strategy
        self._holds: dict[int, str] = {}
        self._asked: set[int] = set()
        self.set_masks(masks)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Other masks from the next message on; grown positions arrive as 0 until they are trained."""
        self._topology = Topology.from_masks(masks)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._packed(self._strategy.configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._packed(self._strategy.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        aggregated: tuple[ArrayRecord | None, MetricRecord | None]
        aggregated = self._strategy.aggregate_train(server_round, self._unpacked(replies))
        return aggregated

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        metrics: MetricRecord | None = self._strategy.aggregate_evaluate(server_round, self._unpacked(replies))
        return metrics

    def summary(self) -> None:
        """What the strategy inside says of itself."""
        self._strategy.summary()

    def _packed(self, messages: Iterable[Message]) -> list[Message]:
        """A list: Flower sends a generator in simulations alone."""
        digest, encoded = self._topology.digest, {}
        messages = list(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            # Nodes are mostly sent one content, which is encoded once with and once without the masks.
            key = id(message.content), self._holds.get(node) == digest
            if key not in encoded:
                encoded[key] = (
                    message.content,
                    _closed(message.content, self._topology, known={digest} if key[1] else ()),
                )
            message.content = encoded[key][1]
        self._asked = {message.metadata.dst_node_id for message in messages}
        return messages

    def _unpacked(self, replies: Iterable[Message]) -> list[Message]:
        """The replies with ordinary arrays; one that cannot be opened, or comes under other masks than
        were sent, is left out like one that never came."""
        opened = []
        for reply in replies:
            if not reply.has_error():
                try:
                    content, topology = _opened(reply.content, {self._topology.digest: self._topology})
                except FedsparseError:
                    continue
                if topology is not None and topology != self._topology:
                    continue
                reply.content = content
                self._holds[reply.metadata.src_node_id] = self._topology.digest
                self._asked.discard(reply.metadata.src_node_id)
            opened.append(reply)
        for node in self._asked:
            self._holds.pop(node, None)
        return opened


def _held(context: Context) -> dict[str, Topology]:
    records = context.state.config_records.get(_MASKS, {})
    return {digest: unpack_topology(blob) for digest, blob in records.items()}


def _opened(content: RecordDict, held: Mapping[str, Topology]) -> tuple[RecordDict, Topology | None]:
    """The content with ordinary arrays, and the masks of its packed ones, if any."""
    records, topology = dict(content.items()), None
    for name, record in content.array_records.items():
        blob = unpacked(record)
        if blob is not None:
            arrays, topology = unpack_arrays(blob, held)
            records[name] = ArrayRecord({key: Array(array) for key, array in arrays.items()})
    return RecordDict(records), topology


def _closed(content: RecordDict, topology: Topology, *, known: Iterable[str]) -> RecordDict:
    """The content with every record that has all masked arrays packed."""
    records = dict(content.items())
    for name, record in content.array_records.items():
        if topology.keys() <= record.keys():
            arrays = {key: array.numpy() for key, array in record.items()}
            records[name] = packed(pack_arrays(arrays, topology, known=set(known)))
    return RecordDict(records)
