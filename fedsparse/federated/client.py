"""The client's half of an exchange, the same in every engine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import cast

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fedsparse import wire
from fedsparse.data import Dataset
from fedsparse.errors import CheckpointError, FedsparseError, MethodError
from fedsparse.federated import seeds, sgd
from fedsparse.federated.engines.base import Reply, Request
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import Kept, Topologies
from fedsparse.measure import measure, resident_bytes
from fedsparse.methods.roles import (
    AroundStep,
    ClientTask,
    Extras,
    LearningRate,
    Memory,
    Penalty,
    is_client_task,
)
from fedsparse.nn import read_weights, sparse_layers, topk_pruned_gradient, write_weights
from fedsparse.nn.layer import repattern
from fedsparse.pattern import Topology
from fedsparse.wire import Payload, SparseVector

__all__ = ["ClientHost", "HostedClient", "Visit"]


class HostedClient:
    """One client during one exchange; the `Client` of `methods.roles`."""

    def __init__(self, plan: Plan, request: Payload, *, client_id: int, model: nn.Module, memory: Memory) -> None:
        self.id = client_id
        self.round = request.round
        self.epochs = plan.client.epochs
        self.data: Dataset = plan.data.client(client_id)
        self.extras: Extras = request.extras
        self.memory = memory
        self._plan = plan
        self._network = model
        self._shuffling = self.rng("batches")
        self._steps: Optimizer | None = None

    @property
    def model(self) -> nn.Module:
        return self._network

    def rng(self, purpose: str) -> Generator:
        return seeds.generator(self._plan.seed, self.round, self.id, purpose)

    def sgd(
        self,
        *,
        epochs: int | None = None,
        samples: Tensor | None = None,
        penalty: Penalty | None = None,
        learning_rate: LearningRate | None = None,
        around_step: AroundStep | None = None,
    ) -> None:
        sgd.train(
            self._network,
            self._samples(samples),
            self._plan.client,
            epochs=self.epochs if epochs is None else epochs,
            generator=self._shuffling,
            steps=self._optimizer(),
            penalty=penalty,
            learning_rate=learning_rate,
            around_step=around_step or nullcontext,
        )

    def _samples(self, positions: Tensor | None) -> Dataset:
        return self.data if positions is None else self.data.subset(positions)

    def _optimizer(self) -> Optimizer:
        """That of this exchange, made when it is first asked for."""
        if self._steps is None:
            self._steps = sgd.optimizer(self._network, self._plan.client)
        return self._steps

    def adopt(self, topology: Topology) -> None:
        layers = sparse_layers(self._network)
        repattern([(layers[name], pattern) for name, pattern in topology.items()], optimizer=self._steps)

    def top_pruned_gradients(
        self, counts: Mapping[str, int], *, samples: Tensor | None = None
    ) -> dict[str, SparseVector]:
        """Gradients of the task loss alone, in training mode with the batch-norm statistics left as they are."""
        if not any(counts.values()):
            return {}
        data, batch_size = self._samples(samples), self._plan.client.batch_size
        sgd.check_batch(self._network, data, batch_size)
        x, y = data.batch(next(sgd.batches(len(data), batch_size, self.rng("probe"))))
        device = next(self._network.parameters()).device
        layers = sparse_layers(self._network)
        buffers = {buffer: buffer.clone() for buffer in _norm_buffers(self._network)}
        self._network.train()
        with ExitStack() as stack:
            probes = {
                name: stack.enter_context(topk_pruned_gradient(layers[name], k)) for name, k in counts.items() if k
            }
            self.data.task.loss(self._network(x.to(device)), y.to(device)).backward()
        self._network.zero_grad()
        for buffer, before in buffers.items():
            buffer.copy_(before)
        return {name: _sorted_vector(layers[name].pattern.size, probe) for name, probe in probes.items()}


def _norm_buffers(model: nn.Module) -> list[Tensor]:
    """Running statistics and counters of all batch norms."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers()]


def _sorted_vector(size: int, probe: topk_pruned_gradient) -> SparseVector:
    indices, order = probe.indices.cpu().sort()
    return SparseVector(size, indices, probe.gradients.cpu()[order].float())


@dataclass(frozen=True, eq=False)
class Visit:
    """A client's exchange after its task.

    Attributes:
        client: who ran it.
        message: what it was sent.
        extras: what the task returned.
        held: the topology that the client holds from now on.
    """

    client: HostedClient
    message: Payload
    extras: Extras
    held: Topology | None


class ClientHost:
    """Serves any client of a run with one network; what clients keep comes with the request and goes with the reply.

    A client holds the topology it was last sent, so that masks travel only when they change. What it makes of it
    itself is sent back in full and then forgotten: next time the server speaks of its own masks, not of this client's.
    """

    def __init__(self, plan: Plan, topologies: Topologies) -> None:
        self._plan = plan
        self._model = plan.network()
        self._topologies = topologies
        sgd.optimizer(self._model, plan.client)  # torch imports its compiler with the first one: no client's seconds

    def serve(self, request: Request, kept: Kept) -> tuple[Reply, Kept]:
        """Runs the task a client is asked for; whatever goes wrong in the client is its failure, not the round's.

        A client that failed keeps what it kept before.

        Raises:
            CheckpointError: what the client keeps cannot be written here, which is no failure of the client.
        """
        blob, reason = None, ""
        standing = resident_bytes(self._model)
        reading = measure(self._plan.device)
        try:
            held, memory = self._recalled(kept)
            with reading:
                visit = self._visit(request, held, memory, self._model)
                answer = self._encoded(request, visit, self._model)
            kept, blob = self._keep(visit.held, memory), answer
        except CheckpointError:
            raise
        except (ClientFailure, FedsparseError) as error:
            reason = str(error)
        peak = reading.peak_bytes
        if peak.value is not None:  # counted from what was there before: the network this host trains on
            peak = replace(peak, value=peak.value + standing)
        return Reply(request.client_id, blob, reason, reading.seconds, peak), kept

    def serve_all(self, requests: Sequence[Request], kept: Sequence[Kept]) -> list[tuple[Reply, Kept]]:
        """`serve` for each of several clients."""
        return [self.serve(request, before) for request, before in zip(requests, kept, strict=True)]

    def _visit(
        self,
        request: Request,
        held: Topology | None,
        memory: Memory,
        model: nn.Module,
        host: Callable[..., HostedClient] = HostedClient,
    ) -> Visit:
        """Decodes a request and runs its task on `model`, by a client that `host` makes."""
        client_id = request.client_id
        message = wire.decode(request.blob, topologies={} if held is None else {held.digest: held})
        if len(self._plan.data.clients[client_id]) == 0:
            raise ClientFailure("the client has no samples")
        if message.weights is not None:
            write_weights(model, message.weights)
            held = message.weights.topology
        client = host(self._plan, message, client_id=client_id, model=model, memory=memory)
        with self._randomness(client, message.task):
            extras = self._task(message.task)(client)
        return Visit(client, message, extras, held)

    def _randomness(self, client: HostedClient, task: str) -> AbstractContextManager[None]:
        """Inside, what the network draws by itself is the client's own."""
        return seeds.network_randomness(client.rng(f"network in {task}"), self._plan.device)

    def _encoded(self, request: Request, visit: Visit, model: nn.Module) -> bytes:
        """The encoded answer."""
        message = visit.message
        if request.weights_back:
            sent = set() if message.weights is None else {message.weights.topology.digest}
            payload = Payload(message.task, message.round, read_weights(model), visit.extras)
            return wire.encode(payload, known=sent)
        return wire.encode(Payload(message.task, message.round, extras=visit.extras))

    # ---- what a client keeps; not part of its seconds, as a device of its own would have it at hand
    def _recalled(self, kept: Kept) -> tuple[Topology | None, Memory]:
        held = self._topologies.get(kept.held) if kept.held else None
        return held, dict(wire.decode(kept.memory).extras) if kept.memory else {}

    def _keep(self, held: Topology | None, memory: Memory) -> Kept:
        if held is not None:
            self._topologies.add(held)
        blob = wire.encode(Payload("memory", 0, extras=memory)) if memory else b""
        return Kept("" if held is None else held.digest, blob)

    def _task(self, name: str) -> ClientTask:
        task = getattr(self._plan.method, name, None)
        if not is_client_task(task):
            raise MethodError(f"method {self._plan.method.name!r} has no client task {name!r}")
        return cast(ClientTask, task)
