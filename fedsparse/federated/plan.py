"""What a federated run is made of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedsparse.data import Dataset, FederatedDataset
from fedsparse.errors import ConfigError
from fedsparse.methods.base import Method

__all__ = ["ClientSettings", "Plan"]

_BYTES_PER_PARAMETER = 64  # masks, gradients, signs: 8 sets of all its positions, and many more of a few


@dataclass(frozen=True)
class ClientSettings:
    """Local training.

    Attributes:
        epochs: passes over a client's data in a round.
        batch_size: samples of a mini-batch.
        optimizer: `sgd`, `adam` or `adamw`; made afresh for every client and round.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: of the optimiser.
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run depends on; the same plan gives the same numbers.

    Attributes:
        method: the algorithm and its settings.
        data: training samples dealt to clients, and the test set.
        build_model: makes the plain dense model, the same at every call.
        narrowed: makes the same model with that share of its channels; None where it has no width to change.
        seed: all randomness of the rounds follows from it.
        rounds: how many.
        per_round: cohort size.
        client: local training.
        eval_every: rounds between evaluations; the last round is always evaluated.
        checkpoint_every: rounds between checkpoints; the last round always writes one.
        min_clients: fewest usable updates of a round.
        device: where clients and evaluation compute.
        public: samples the server may use, if any.
        threads: that torch computes with in a client, in every engine; None means as many as in this process.
    """

    method: Method
    data: FederatedDataset
    build_model: Callable[[], nn.Module]
    seed: int = 0
    rounds: int = 10
    per_round: int = 8
    client: ClientSettings = ClientSettings()
    eval_every: int = 1
    checkpoint_every: int = 1
    min_clients: int = 1
    device: str = "cpu"
    public: Dataset | None = None
    threads: int | None = None
    narrowed: Callable[[float], nn.Module] | None = None

    def network(self) -> nn.Module:
        """The method's network with its initial weights, on the run's device.

        Raises:
            ConfigError: the method wants another width than the model's, which has none.
            InfeasibleDensityError: no width is small enough for the method.
        """
        share = self.method.width(self._parameters)
        plain = self.build_model() if share == 1 else self._narrowed(share)
        return self.method.build(plain).to(self.device)

    def most_bytes(self) -> int:
        """Bound of `wire.decode` for what a client sends or keeps: 8 sets of all positions."""
        return _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in self.build_model().parameters())

    def _narrowed(self, share: float) -> nn.Module:
        if self.narrowed is None:
            raise ConfigError(f"method {self.method.name!r} makes narrow networks, this model has no width to change")
        return self.narrowed(share)

    def _parameters(self, share: float) -> int:
        with torch.device("meta"):  # counts without memory or initial values
            model = self.build_model() if share == 1 else self._narrowed(share)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
