"""The client's half of an exchange for several clients at once, as far as their work is the same.

Methods know nothing of it: what they ask a client for is put off until its result is looked at. A task that trains and
returns has its training put off to the end, where it is run together with that of others. A task that looks at its
model, changes masks or asks for gradients of pruned weights before or after is run by itself, as everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fedsparse.errors import CheckpointError, ConfigError, FedsparseError
from fedsparse.federated import sgd
from fedsparse.federated.client import ClientHost, HostedClient, Visit
from fedsparse.federated.engines.base import Reply, Request
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import Kept, Topologies
from fedsparse.federated.together import Training, train_together
from fedsparse.measure import Reading, measure, resident_bytes
from fedsparse.methods.roles import AroundStep, LearningRate, Memory, Penalty
from fedsparse.nn import Joint, require_foldable
from fedsparse.pattern import Topology
from fedsparse.wire import Payload, SparseVector

__all__ = ["CohortHost", "PatientClient"]

_LOOKS = "its task does more than train and return"
_NO_OTHER = "no other client trains under the same masks"
_NO_STEP = "no mini-batch is of the size that the others have"
_SAMPLES = 4  # to try the model on


class PatientClient(HostedClient):
    """A client that trains when somebody looks: until then its training waits, perhaps for others.

    Once its model has been looked at it has no patience any more, because a task may have kept what it saw.

    Args:
        plan, request, client_id, model, memory: as of `HostedClient`.
        refusal: why the model cannot be folded; then nothing waits.

    Attributes:
        request: what it was sent.
        waiting: training that was asked for and not begun by the client itself.
        alone: why it has trained by itself, if it has.
    """

    def __init__(
        self, plan: Plan, request: Payload, *, client_id: int, model: nn.Module, memory: Memory, refusal: str
    ) -> None:
        super().__init__(plan, request, client_id=client_id, model=model, memory=memory)
        self.waiting: Training | None = None
        self.alone = ""
        self.request = request
        self._reason = refusal or ("" if request.weights is not None else _LOOKS)

    @property
    def model(self) -> nn.Module:
        self._settle()
        return self._network

    def sgd(
        self,
        *,
        epochs: int | None = None,
        samples: Tensor | None = None,
        penalty: Penalty | None = None,
        learning_rate: LearningRate | None = None,
        around_step: AroundStep | None = None,
    ) -> None:
        epochs, plain = self.epochs if epochs is None else epochs, (penalty, learning_rate, around_step) == (None,) * 3
        if self.waiting is None and not self._reason and plain and epochs:
            data, settings = self._samples(samples), self._plan.client
            sgd.check_batch(self._network, data, settings.batch_size)
            self.waiting = Training(self._network, data, settings, epochs, self._shuffling, self._optimizer())
            return
        self._settle()
        self.alone = self._reason
        super().sgd(
            epochs=epochs, samples=samples, penalty=penalty, learning_rate=learning_rate, around_step=around_step
        )

    def adopt(self, topology: Topology) -> None:
        self._settle()
        super().adopt(topology)

    def top_pruned_gradients(
        self, counts: Mapping[str, int], *, samples: Tensor | None = None
    ) -> dict[str, SparseVector]:
        if any(counts.values()):
            self._settle()
        return super().top_pruned_gradients(counts, samples=samples)

    def _settle(self) -> None:
        """Trains now what waits; from now on nothing does."""
        self._reason = self._reason or _LOOKS
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            self.alone = self._reason
            waiting.run()


class CohortHost(ClientHost):
    """Serves up to `size` clients at a time, each with a network of its own.

    Seconds of clients that train together are shared by their samples. Their peak memory is shared evenly: it is that
    of all their networks, so this is what each adds to it, and not what one would need by itself. What a client does
    by itself counts in full.

    Args:
        plan: the run.
        topologies: those that clients hold.
        size: how many clients.
    """

    def __init__(self, plan: Plan, topologies: Topologies, size: int) -> None:
        super().__init__(plan, topologies)
        self._networks = [plan.network() for _ in range(size)]
        self._refusal = _refusal(plan, self._model)

    def serve_all(self, requests: Sequence[Request], kept: Sequence[Kept]) -> list[tuple[Reply, Kept]]:
        """What `serve` gives for each of up to `size` requests; what goes wrong in one client is its failure alone.

        Raises:
            CheckpointError: what a client keeps cannot be written here.
        """
        each = zip(requests, kept, self._networks[: len(requests)], strict=True)
        guests = [_Guest(*one, device=self._plan.device) for one in each]
        for guest in guests:
            self._begin(guest)
        for company in _companies(guests):
            self._train(company)
        for guest in guests:
            self._end(guest)
        return [(guest.reply(), guest.kept) for guest in guests]

    def _begin(self, guest: "_Guest") -> None:
        """Runs the task, but for training that can wait."""
        with guest.failing():
            held, guest.memory = self._recalled(guest.kept)
            with guest.at_work():
                host = partial(PatientClient, refusal=self._refusal)
                guest.visit = self._visit(guest.request, held, guest.memory, guest.network, host)
            guest.alone = guest.client.alone

    def _train(self, company: Sequence["_Guest"]) -> None:
        """Runs training that waits under one topology."""
        trainings = [guest.training for guest in company]
        if len(company) == 1:
            self._train_alone(company[0], _NO_OTHER)
            return
        standing, reading = sum(resident_bytes(guest.network) for guest in company), measure(self._plan.device)
        with reading:
            joint, reason = _joined([guest.network for guest in company])
            if joint is not None:
                train_together(trainings, joint)
        if joint is None:
            for guest in company:
                self._train_alone(guest, reason)
            return
        samples, peak = sum(len(training.data) for training in trainings), reading.peak_bytes.value
        for guest, training in zip(company, trainings, strict=True):
            seconds = (reading.seconds.value or 0.0) * len(training.data) / samples
            guest.book(seconds, None if peak is None else (standing + peak) / len(company))
            guest.steps_folded, guest.alone = training.folded, "" if training.folded else _NO_STEP
            with guest.failing():
                if training.failure is not None:
                    raise training.failure

    def _train_alone(self, guest: "_Guest", reason: str) -> None:
        guest.alone = reason
        with guest.failing(), guest.at_work(), self._randomness(guest.client, guest.client.request.task):
            guest.training.run()

    def _end(self, guest: "_Guest") -> None:
        """Encodes the answer of a client that has not failed, and what it keeps."""
        if guest.visit is None:
            return
        with guest.failing():
            with guest.at_work():
                blob = self._encoded(guest.request, guest.visit, guest.network)
            guest.kept, guest.blob = self._keep(guest.visit.held, guest.memory), blob


@dataclass(eq=False)
class _Guest:
    """A client among others: what it came with, how far it has come, and what that took."""

    request: Request
    kept: Kept
    network: nn.Module
    device: str
    memory: Memory = field(default_factory=dict)
    visit: Visit | None = None
    blob: bytes | None = None
    reason: str = ""
    alone: str = ""
    steps_folded: int = 0
    seconds: float = 0.0
    peak: float | None = 0.0

    @property
    def client(self) -> PatientClient:
        assert self.visit is not None, "the client has failed"
        assert isinstance(self.visit.client, PatientClient)
        return self.visit.client

    @property
    def training(self) -> Training:
        assert self.client.waiting is not None, "nothing waits"
        return self.client.waiting

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong inside ends this client's exchange, as in `ClientHost.serve`."""
        try:
            yield
        except CheckpointError:
            raise
        except (ClientFailure, FedsparseError) as error:
            self.reason, self.visit = str(error), None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What happens inside is this client's alone."""
        standing, reading = resident_bytes(self.network), measure(self.device)
        try:
            with reading:
                yield
        finally:
            peak = reading.peak_bytes.value
            self.book(reading.seconds.value or 0.0, None if peak is None else standing + peak)

    def book(self, seconds: float, peak: float | None) -> None:
        """Adds a part of its work, and the peak memory of that part."""
        self.seconds += seconds
        self.peak = None if self.peak is None or peak is None else max(self.peak, peak)

    def reply(self) -> Reply:
        peak = Reading(self.peak, "B", "unavailable" if self.peak is None else "measured")
        seconds = Reading(self.seconds, "s", "measured")
        return Reply(
            self.request.client_id, self.blob, self.reason, seconds, peak,
            steps_folded=self.steps_folded, alone=self.alone,
        )  # fmt: skip


def _companies(guests: Sequence[_Guest]) -> list[list[_Guest]]:
    """Clients whose training waits, those with equal masks and epochs together."""
    found: dict[tuple[str, int], list[_Guest]] = {}
    for guest in guests:
        if guest.visit is not None and guest.client.waiting is not None:
            weights = guest.visit.message.weights
            masks = "" if weights is None else weights.topology.digest
            found.setdefault((masks, guest.training.epochs), []).append(guest)
    return list(found.values())


def _joined(networks: Sequence[nn.Module]) -> tuple[Joint | None, str]:
    """The networks side by side, ready to be trained, or why they cannot be."""
    try:
        return Joint([network.train() for network in networks]), ""
    except ConfigError as error:
        return None, str(error)


def _refusal(plan: Plan, network: nn.Module) -> str:
    """Why networks of this run cannot be folded; empty if they can."""
    test = plan.data.test
    x, _ = test.batch(torch.arange(min(_SAMPLES, len(test))))
    try:
        require_foldable(network, x.to(plan.device))
    except ConfigError as error:
        return str(error)
    return ""
