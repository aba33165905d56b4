"""All that a method sees of the system: the server's half, the client's half, and what passes between them."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.pattern import Weights
from fedsparse.wire.payload import Section, SparseVector

__all__ = ["Client", "ClientTask", "Download", "Extras", "Memory", "Server", "Update", "client_task"]

Extras = Mapping[str, Section]
Memory = MutableMapping[str, Section]
ClientTask = Callable[["Client"], Extras]
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


class Server(Protocol):
    """The server as a method sees it.

    Attributes:
        round: number of the current round, from 0.
        weights: the global model.
        model: a network with the global weights in it; changes to it are not kept.
        public_data: samples the server may use, or None.
        memory: the method's only mutable state; survives resume.
    """

    round: int
    weights: Weights
    memory: Memory

    @property
    def model(self) -> nn.Module: ...

    @property
    def public_data(self) -> Dataset | None: ...

    def rng(self, purpose: str) -> torch.Generator:
        """Generator that depends on run seed, round and purpose only."""
        ...

    def ask(
        self, task: Callable[..., Extras], download: Callable[[int], Download], *, weights_back: bool = False
    ) -> list[Update]:
        """One exchange: every cohort member runs `task`, a `@client_task`, on `download(client_id)`."""
        ...

    def pretrain(self, epochs: int) -> Weights:
        """Dense global weights after `epochs` of training on the public data; unchanged without any."""
        ...


class Client(Protocol):
    """One client in one exchange, as a method sees it.

    Attributes:
        id: which client.
        round: number of the current round.
        model: the network, with the downloaded weights in it.
        data: the client's training samples.
        extras: what came with the download.
        memory: private state that stays with the client; survives resume.
    """

    id: int
    round: int
    model: nn.Module
    data: Dataset
    extras: Extras
    memory: Memory

    def sgd(self, *, epochs: int | None = None) -> None:
        """Trains the model on the client's data with a fresh optimiser; the run's number of epochs by default."""
        ...

    def top_pruned_gradients(self, counts: Mapping[str, int]) -> dict[str, SparseVector]:
        """For each named weight, its `counts[name]` largest gradients at pruned positions, on one mini-batch."""
        ...

    def rng(self, purpose: str) -> torch.Generator:
        """Generator that depends on run seed, round, client and purpose only."""
        ...


def weights_of(updates: Sequence[Update]) -> list[Weights]:
    """The trained weights of all updates, which must have been asked for."""
    found: list[Any] = [update.weights for update in updates]
    assert all(w is not None for w in found), "an exchange with weights_back=True delivers weights"
    return found
