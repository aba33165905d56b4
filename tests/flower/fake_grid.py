"""Flower's grid without Flower's processes: messages reach the handlers at once, or as a fault says."""

from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict

from fedsparse.federated.plan import Plan
from fedsparse.flower import node
from fedsparse.flower.engine import EXCHANGE, HAND_OVER, HELLO, TAKE_BACK

FIRST_NODE = 1000


class FakeGrid:
    """Nodes that serve the clients of a plan, each with a state of its own.

    Attributes:
        altered: given each message and its reply, the reply that comes back in its place.
        faults: asked for each message with its number; `refuse`, `silent`, `error` or `lost` (the node works, its
            answer does not come back). Anything else is no fault.
        seen: the messages that were pushed.
        contexts: of the nodes, by id.
        nap: seconds that the engine has slept.
    """

    def __init__(self, plan: Plan, *, nodes: int, faults: Callable[[int, Message], str] = lambda *_: "") -> None:
        self._desks = {FIRST_NODE + i: node.Desk(plan) for i in range(nodes)}
        self.contexts = {
            FIRST_NODE + i: Context(1, FIRST_NODE + i, {"partition-id": i, "num-partitions": nodes}, RecordDict(), {})
            for i in range(nodes)
        }
        self.faults = faults
        self.altered: Callable[[Message, Message], Message] = lambda _, reply: reply
        self.seen: list[Message] = []
        self.nap = 0.0
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        assert isinstance(messages, list), "a generator fails in deployment"
        targets = [message.metadata.dst_node_id for message in messages]
        assert len(targets) == len(set(targets)), "a node was sent two messages at once"
        return [self._pushed(message) for message in messages]

    def _pushed(self, message: Message) -> str | None:
        number = len(self.seen)
        self.seen.append(message)
        assert message.metadata.ttl > 0
        name = f"message {number}"
        message.metadata.__dict__["_message_id"] = name
        fault = self.faults(number, message)
        if fault == "refuse" or message.metadata.dst_node_id not in self.contexts:
            return None
        if fault == "silent":
            return name
        reply = self._handled(message) if fault != "error" else Message(Error(2, "it broke"), reply_to=message)
        if fault != "lost":
            self._replies[name] = self.altered(message, reply)
        return name

    def _handled(self, message: Message) -> Message:
        context, desk = self.contexts[message.metadata.dst_node_id], self._desks[message.metadata.dst_node_id]
        handlers = {
            EXCHANGE: lambda: node.exchange(message, context, desk),
            HELLO: lambda: node.hello(message, context),
            HAND_OVER: lambda: node.hand_over(message, context),
            TAKE_BACK: lambda: node.take_back(message, context),
        }
        try:
            return handlers[message.metadata.message_type]()
        except Exception as error:  # as Flower does
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in ids if name in self._replies]

    def sleep(self, seconds: float) -> None:
        self.nap += seconds

    def clock(self) -> float:
        return self.nap
