"""All that a method sees of the system: the server's half, the client's half, and what passes between them."""

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.pattern import Topology, Weights
from fedsparse.wire.payload import Section, SparseVector

__all__ = [
    "AroundStep",
    "Check",
    "Client",
    "ClientTask",
    "CostRow",
    "Download",
    "Extras",
    "LearningRate",
    "Memory",
    "Penalty",
    "Server",
    "Update",
    "client_task",
]

Extras = Mapping[str, Section]
Memory = MutableMapping[str, Section]
ClientTask = Callable[["Client"], Extras]
Penalty = Callable[[nn.Module], Tensor]
LearningRate = Callable[[int, int, float], float]
AroundStep = Callable[[], AbstractContextManager[object]]
_Task = TypeVar("_Task", bound=Callable[..., Extras])

_MARK = "_is_client_task"


def client_task(function: _Task) -> _Task:
    """Marks a method of a `Method` that clients may be asked to run by name. Nothing else can be asked for."""
    setattr(function, _MARK, True)
    return function


def is_client_task(function: object) -> bool:
    """Whether `function` carries the mark of `client_task`."""
    return bool(getattr(function, _MARK, False))


@dataclass(frozen=True, eq=False)
class Download:
    """What one client is sent: weights (None: it works with what it remembers) and extras by name."""

    weights: Weights | None
    extras: Extras = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Update:
    """What one client answered.

    The updates of a large cohort lie on disk and are decoded when `weights` or `extras` are looked at, so a method goes
    through them one at a time, as few times as it can, and keeps no list of what they contain.

    Attributes:
        client_id: which client.
        num_samples: its training samples; the weight of its update.
        weights: trained weights, where they were asked for.
        extras: what the task returned.
    """

    client_id: int
    num_samples: int
    weights: Weights | None
    extras: Extras


Check = Callable[[Download, Update], None]


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one client's training costs in a round beyond training the weights it was sent, as papers count it.

    Attributes:
        probes: mini-batches on which gradients of pruned weights are computed too; None is all.
        numbers_up: numbers of four bytes uploaded beside the weights.
        models_down: how many more times the size of the weights is downloaded.
        buffer_bytes: memory held to adjust masks.
        value_bits: of each trainable number on its way, down and up.
    """

    probes: int | None = 0
    numbers_up: int = 0
    models_down: int = 0
    buffer_bytes: int = 0
    value_bits: int = 32


class Server(Protocol):
    """The server as a method sees it.

    Attributes:
        round: number of the current round, from 0.
        num_samples: training samples of all clients of the run, sampled or not.
        weights: the global model.
        model: a network with the global weights in it; changes to it are not kept.
        sample_shape: of one input of the network, without the batch.
        public_data: samples the server may use, or None.
        memory: the method's only mutable state; survives resume.
    """

    round: int
    weights: Weights
    memory: Memory

    @property
    def num_samples(self) -> int: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def sample_shape(self) -> tuple[int, ...]: ...

    @property
    def public_data(self) -> Dataset | None: ...

    def rng(self, purpose: str) -> torch.Generator:
        """Generator that depends on run seed, round and purpose only."""
        ...

    def ask(
        self,
        task: Callable[..., Extras],
        download: Callable[[int], Download],
        *,
        weights_back: bool = False,
        check: Check | None = None,
    ) -> list[Update]:
        """One exchange: every cohort member runs `task`, a `@client_task`, on `download(client_id)`.

        Updates are in the order of client numbers; their content is there until the round ends.

        Args:
            check: called with what a client was sent and what it answered, before anyone else sees the answer. An
                answer it raises a FedsparseError for counts as this client's failure; see `methods.checks`.

        Raises:
            ClientError: fewer clients than the run asks for delivered a usable answer.
        """
        ...

    def ask_one(
        self, task: Callable[..., Extras], download: Callable[[int], Download], *, check: Check | None = None
    ) -> Update:
        """The first usable answer, cohort members being asked one after another, without weights of their own.

        Raises:
            ClientError: no member delivered one.
        """
        ...

    def pretrain(self, epochs: int) -> Weights:
        """Dense global weights after `epochs` of training on the public data; unchanged without any."""
        ...


class Client(Protocol):
    """One client in one exchange, as a method sees it.

    Attributes:
        id: which client.
        round: number of the current round.
        epochs: the run's local epochs.
        model: the network, with the downloaded weights in it.
        data: the client's training samples.
        extras: what came with the download.
        memory: private state that stays with the client; survives resume.
    """

    id: int
    round: int
    epochs: int
    data: Dataset
    extras: Extras
    memory: Memory

    @property
    def model(self) -> nn.Module: ...

    def sgd(
        self,
        *,
        epochs: int | None = None,
        samples: Tensor | None = None,
        penalty: Penalty | None = None,
        learning_rate: LearningRate | None = None,
        around_step: AroundStep | None = None,
    ) -> None:
        """Trains the model on the client's data.

        The first call of an exchange starts with a fresh optimiser. Later ones go on with it and with the shuffling:
        two calls of one epoch each take the steps of one call of two. Masks that change in between go through `adopt`.

        Args:
            epochs: passes over the samples; the run's number by default.
            samples: positions `(k,)` int64 in `data` to train on; all by default.
            penalty: scalar added to the loss of each step, of the model as it is then.
            learning_rate: rate of a step, from its number in this call (from 0), the steps of this call and the
                run's rate; the run's rate by default.
            around_step: makes a context that is entered before the forward pass of each step and left after the
                backward pass, when gradients are there and the optimiser has not stepped yet.

        Raises:
            ClientFailure: nothing to train on, or a loss that is not finite.
        """
        ...

    def adopt(self, topology: Topology) -> None:
        """Gives the model new masks: kept weights keep value and optimiser state, grown ones start at 0 without any.

        What a client answers a training with is judged by `Method.client_masks`.
        """
        ...

    def top_pruned_gradients(
        self, counts: Mapping[str, int], *, samples: Tensor | None = None
    ) -> dict[str, SparseVector]:
        """For each named weight, its `counts[name]` largest gradients at pruned positions, on one mini-batch.

        Weights with a count of 0 are left out. The mini-batch is drawn from `samples`, positions `(k,)` int64 in
        `data`, or from all; it is the same in every call of one exchange that draws from the same samples.
        """
        ...

    def rng(self, purpose: str) -> torch.Generator:
        """Generator that depends on run seed, round, client and purpose only."""
        ...


def weights_of(update: Update) -> Weights:
    """The trained weights of an update, which must have been asked for."""
    found = update.weights
    assert found is not None, "an exchange with weights_back=True delivers weights"
    return found
