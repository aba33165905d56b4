"""The server's half of an exchange: what is sent, counted, checked and remembered."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Generator, nn

from fedsparse import energy, wire
from fedsparse.data import Dataset
from fedsparse.errors import CheckpointError, ClientError, FedsparseError
from fedsparse.federated import seeds, sgd
from fedsparse.federated.checkpoint import by_client
from fedsparse.federated.engines.base import Engine, Reply, Request
from fedsparse.federated.judging import check_fits, judge, not_finite
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.plan import Plan
from fedsparse.federated.replies import by_request
from fedsparse.federated.traffic import Traffic, ignored, settled
from fedsparse.federated.uploads import Uploads
from fedsparse.methods.roles import Check, Download, Extras, Memory, Update
from fedsparse.nn import read_weights, write_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import Payload

__all__ = ["AT_ONCE", "FederatedServer"]

# Clients asked at once, and updates held decoded: cohorts up to this size are one exchange and are decoded once. Each
# costs the memory of a request, a reply and decoded weights. Larger cohorts cost a barrier every 32 clients, at which
# workers and nodes wait for the slowest; more of these than 32 would not be kept busy.
AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class _Asked:
    """What one client was asked: the task, what it was sent, the same as bytes, and who judges the answer."""

    task: str
    sent: Download
    request: Request
    check: Check | None


class FederatedServer:
    """Holds the global model and asks clients; the `Server` of `methods.roles`.

    It holds the messages of `at_once` clients and as many decoded updates at most, whatever the size of a cohort.

    Args:
        plan: the run.
        engine: who runs the clients.
        ledger: where each exchange is recorded.
        folder: where the uploads of a round are until it ends, emptied now; a temporary folder if None.
        at_once: clients of one call of the engine; results do not depend on it.

    Attributes:
        round: current round.
        weights: global model.
        memory: state of the method.
        cohort: clients of the current round.
        traffic: sums of the current round.
        known: digest of the topology each client holds: the one it was last sent.
    """

    def __init__(
        self, plan: Plan, engine: Engine, ledger: Ledger, *, folder: Path | None = None, at_once: int = AT_ONCE
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._ledger = ledger
        self._network = plan.network()
        self.round = 0
        self.weights = on_cpu(read_weights(self._network))
        self.memory: Memory = {}
        self.cohort: list[int] = []
        self.traffic = Traffic()
        self.known: dict[int, str] = {}
        self._at_once = at_once
        self._most_bytes = plan.most_bytes()
        self._uploads = Uploads(folder, recent=at_once, most_bytes=self._most_bytes)
        dense = read_weights(plan.build_model())
        self._dense_bytes = len(wire.encode(Payload("train", 0, dense), known={dense.topology.digest}))

    def begin(self, round: int) -> None:
        """Draws the cohort of a round and starts its sums."""
        self.round = round
        self.traffic = Traffic()
        data = self._plan.data
        self.cohort = seeds.cohort(self._plan.seed, round, clients=len(data.clients), size=self._plan.per_round)

    def end(self) -> None:
        """Removes the uploads of the round; its updates are of no use any more."""
        self._uploads.clear()

    def close(self) -> None:
        """Frees what lies on disk."""
        self._uploads.close()

    # ---- what methods use
    @property
    def num_samples(self) -> int:
        return sum(self._plan.data.sizes)

    @property
    def model(self) -> nn.Module:
        write_weights(self._network, self.weights)
        return self._network

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._plan.data.train.shape

    @property
    def public_data(self) -> Dataset | None:
        return self._plan.public

    def rng(self, purpose: str) -> Generator:
        return seeds.generator(self._plan.seed, self.round, "server", purpose)

    def pretrain(self, epochs: int) -> Weights:
        if self._plan.public is None or epochs == 0:
            return self.weights
        model = self.model
        with seeds.network_randomness(self.rng("network"), self._plan.device):
            sgd.train(model, self._plan.public, self._plan.client, epochs=epochs, generator=self.rng("pretrain"))
        return on_cpu(read_weights(model))

    def ask(
        self,
        task: Callable[..., Extras],
        download: Callable[[int], Download],
        *,
        weights_back: bool = False,
        check: Check | None = None,
    ) -> list[Update]:
        updates = self._exchange(self.cohort, task, download, weights_back=weights_back, check=check)
        if len(updates) < min(self._plan.min_clients, len(self.cohort)):
            raise ClientError(
                f"round {self.round}: {len(updates)} of {len(self.cohort)} clients delivered a usable update "
                f"for {task.__name__!r}, engine.min_clients asks for {self._plan.min_clients}; "
                "clients.jsonl says why each failed"
            )
        return updates

    def ask_one(
        self, task: Callable[..., Extras], download: Callable[[int], Download], *, check: Check | None = None
    ) -> Update:
        for client_id in self.cohort:
            updates = self._exchange([client_id], task, download, weights_back=False, check=check)
            if updates:
                return updates[0]
        raise ClientError(
            f"round {self.round}: none of {len(self.cohort)} clients delivered a usable answer "
            f"for {task.__name__!r}; clients.jsonl says why each failed"
        )

    def _exchange(
        self,
        clients: Sequence[int],
        task: Callable[..., Extras],
        download: Callable[[int], Download],
        *,
        weights_back: bool,
        check: Check | None,
    ) -> list[Update]:
        """The usable answers of `clients`, in their order, asked for in slices."""
        found: list[Update] = []
        records: list[dict[str, Any]] = []
        for first in range(0, len(clients), self._at_once):
            asked = self._encoded(clients[first : first + self._at_once], task, download, weights_back, check)
            updates, stray = self._exchange_slice(asked)
            found += updates
            # On record after all answers; what they were is kept until then, not what they contained.
            records += [ignored(self.round, _in_another_slice(reply, clients)) for reply in stray]
        for record in records:
            self._book_ignored(record)
        return found

    def _encoded(
        self,
        clients: Sequence[int],
        task: Callable[..., Extras],
        download: Callable[[int], Download],
        weights_back: bool,
        check: Check | None,
    ) -> list["_Asked"]:
        asked = []
        for client_id in clients:
            sent = download(client_id)
            message = Payload(task.__name__, self.round, sent.weights, sent.extras)
            known = {self.known[client_id]} if client_id in self.known else set()
            request = Request(client_id, wire.encode(message, known=known), weights_back)
            asked.append(_Asked(task.__name__, sent, request, check))
        return asked

    def _exchange_slice(self, asked: Sequence["_Asked"]) -> tuple[list[Update], list[Reply]]:
        """The usable answers to one call of the engine, put away, and the replies that answer nothing in it."""
        start, meter = time.perf_counter(), energy.Meter(self._plan.device)
        replies = self._engine.exchange([each.request for each in asked])
        self.traffic.exchange_seconds += time.perf_counter() - start
        self.traffic.add_joules(meter)
        of_request, stray = by_request([each.request for each in asked], replies)
        answers = [self._receive(each, mine) for each, mine in zip(asked, of_request, strict=True)]
        return [update for update in answers if update is not None], stray

    # ---- the replies of one client
    def _receive(self, asked: "_Asked", replies: Sequence[Reply]) -> Update | None:
        """Books a client's replies and puts the first usable one away; None, with the reason on record, without any."""
        opened = [self._tried(asked, reply) for reply in replies]
        chosen = next((i for i, (update, _) in enumerate(opened) if update is not None), 0)
        for i, (reply, (_, reason)) in enumerate(zip(replies, opened, strict=True)):
            if i != chosen:
                reason = reason or "the client has answered already"
                self._book_ignored(ignored(self.round, replace(reply, reason=reason)))
        reply, (update, reason) = replies[chosen], opened[chosen]
        if reply.blob is None:
            # It may not have kept what it was sent: the next message says everything.
            self.known.pop(reply.client_id, None)
        elif asked.sent.weights is not None:
            self.known[reply.client_id] = asked.sent.weights.topology.digest
        self._book(asked, reply, update, reason)
        if update is None or reply.blob is None:
            return None
        return self._uploads.put(
            update, reply.blob, None if asked.sent.weights is None else asked.sent.weights.topology
        )

    def _tried(self, asked: "_Asked", reply: Reply) -> tuple[Update | None, str]:
        """The update in a reply, or the reason why there is none."""
        if reply.blob is None:
            return None, reply.reason
        try:
            return self._opened(asked, reply.blob), ""
        except FedsparseError as error:
            return None, str(error)

    def _opened(self, asked: "_Asked", blob: bytes) -> Update:
        request, sent = asked.request, asked.sent.weights
        topologies = {} if sent is None else {sent.topology.digest: sent.topology}
        message = wire.decode(blob, topologies=topologies, most_bytes=self._most_bytes)
        if (message.task, message.round) != (asked.task, self.round):
            raise FedsparseError(
                f"the upload answers {message.task!r} of round {message.round}, "
                f"{asked.task!r} of round {self.round} was asked for"
            )
        if (message.weights is not None) != request.weights_back:
            raise FedsparseError(f"the upload has {'no' if request.weights_back else 'unasked'} weights")
        if message.weights is not None:
            wanted, method = self.weights if sent is None else sent, self._plan.method
            own_masks = method.client_masks and method.adjusts(self.round)
            check_fits(message.weights, wanted, own_masks=own_masks, own_counts=method.client_counts)
        odd = not_finite({"weights": message.weights, "extras": message.extras})
        if odd:
            raise FedsparseError(f"the upload contains NaN or infinite numbers in {odd}")
        samples = len(self._plan.data.clients[request.client_id])
        update = Update(request.client_id, samples, message.weights, message.extras)
        if asked.check is not None:
            judge(asked.check, asked.sent, update)
        return update

    def _book(self, asked: "_Asked", reply: Reply, update: Update | None, reason: str) -> None:
        """The reply that a client's request is settled by."""
        training, usable = asked.task == self._plan.method.train.__name__, update is not None
        samples, sent = len(self._plan.data.clients[reply.client_id]), len(asked.request.blob)
        self.traffic.add(
            reply, sent, usable=usable, samples=samples, dense_bytes=self._dense_bytes if training else None
        )
        record = settled(self.round, reply, sent, training=training, samples=samples, usable=usable, reason=reason)
        self._ledger.add_client(record)

    def _book_ignored(self, record: Mapping[str, Any]) -> None:
        """The record of a reply that answers nothing."""
        self.traffic.add_ignored(record["bytes_up"])
        self._ledger.add_client(record)

    # ---- checkpoints
    def state(self, next_round: int) -> Payload:
        """Everything that the rounds from `next_round` on depend on, but for what clients keep."""
        return Payload(
            "checkpoint",
            next_round,
            self.weights,
            {
                "memory": self.memory,
                "known": {str(client): digest for client, digest in self.known.items()},
                "ledger": self._ledger.lengths(),
            },
        )

    def restore(self, state: Payload) -> None:
        """Returns to a state.

        Raises:
            CheckpointError: the message is no checkpoint.
        """
        extras: Mapping[str, Any] = state.extras
        if state.task != "checkpoint" or state.weights is None:
            raise CheckpointError(f"expected a checkpoint to resume from, found a message for the task {state.task!r}")
        memory, lengths = extras.get("memory"), extras.get("ledger")
        if type(memory) is not dict or type(lengths) is not dict:
            raise CheckpointError("the checkpoint lacks the method's memory or the lengths of the records")
        known = by_client(extras.get("known"), str)
        self._ledger.restore(lengths)
        self.weights, self.memory, self.known = state.weights, memory, known


def on_cpu(weights: Weights) -> Weights:
    """The same weights in main memory, where they are averaged and encoded."""
    return Weights(
        Topology({name: pattern.to("cpu") for name, pattern in weights.topology.items()}),
        {name: tensor.cpu() for name, tensor in weights.values.items()},
        {name: tensor.cpu() for name, tensor in weights.dense.items()},
    )


def _in_another_slice(reply: Reply, clients: Sequence[int]) -> Reply:
    """A stray reply; the reason of one whose client was asked, but not then, says so."""
    if reply.client_id not in clients:
        return reply
    return replace(reply, reason="the client was asked in another part of this exchange")
