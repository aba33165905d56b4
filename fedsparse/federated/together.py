"""Local training of several clients at once: one forward and one backward pass for all networks, folded into one.

Every client draws its own mini-batches, as it does alone, and has an optimiser of its own, so optimisers of any kind
and clients that have taken different numbers of steps go together. Clients take a step together while all of them
have mini-batches of one size; what is left of an epoch, each takes by itself. Results are those of training alone up
to the order in which kernels add.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fedsparse.data import Dataset
from fedsparse.federated import sgd
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import ClientSettings
from fedsparse.nn import Joint

__all__ = ["Training", "train_together"]


@dataclass(eq=False)
class Training:
    """Plain local training that one client has asked for: nothing is added to the loss, and the rate stays.

    Attributes:
        network, data, settings, epochs, generator, steps: as of `sgd.train`, which would accept them.
        failure: why it ended early, if it did.
        folded: how many of its steps were taken together with others.
    """

    network: nn.Module
    data: Dataset
    settings: ClientSettings
    epochs: int
    generator: Generator
    steps: Optimizer
    failure: ClientFailure | None = None
    folded: int = 0

    def run(self) -> None:
        """All of it, alone.

        Raises:
            ClientFailure: as of `sgd.train`.
        """
        sgd.train(
            self.network, self.data, self.settings, epochs=self.epochs, generator=self.generator, steps=self.steps
        )

    def epoch(self, fewest: int) -> list[Tensor]:
        """Samples of each mini-batch of the next epoch."""
        return list(sgd.batches(len(self.data), self.settings.batch_size, self.generator, fewest=fewest))


def train_together(trainings: Sequence[Training], joint: Joint) -> None:
    """Runs trainings of equal epochs, whose networks are joint, and parts these.

    One whose loss is no longer finite ends there, with the reason as its `failure`; the others never notice.
    """
    first = trainings[0]
    fewest = sgd.check_batch(first.network, first.data, first.settings.batch_size)
    for _ in range(first.epochs):
        epochs = [training.epoch(fewest) for training in trainings]
        shared = list(takewhile(_alike, zip(*epochs, strict=False)))
        for parts in shared:
            _step(joint, trainings, parts)
        for training, epoch in zip(trainings, epochs, strict=True):
            _go_on_alone(training, epoch[len(shared) :])
    joint.part()
    for training in trainings:
        training.steps.zero_grad()


def _alike(parts: tuple[Tensor, ...]) -> bool:
    """Whether mini-batches have one size."""
    return len({len(part) for part in parts}) == 1


def _step(joint: Joint, trainings: Sequence[Training], parts: Sequence[Tensor]) -> None:
    """A step of every training that has not failed; those that have still fill their channels with something."""
    device = next(trainings[0].network.parameters()).device
    samples = [training.data.batch(part) for training, part in zip(trainings, parts, strict=True)]
    outputs = joint([x.to(device) for x, _ in samples])
    each = zip(trainings, outputs, samples, strict=True)
    losses = torch.stack([training.data.task.loss(output, y.to(device)) for training, output, (_, y) in each])
    for training, loss in zip(trainings, losses.tolist(), strict=True):
        try:
            sgd.check_loss(loss)
        except ClientFailure as failure:
            training.failure = training.failure or failure
    sound = [place for place, training in enumerate(trainings) if training.failure is None]
    if not sound:
        return
    joint.backward(losses[sound].sum())
    for place in sound:
        trainings[place].steps.step()
        trainings[place].folded += 1


def _go_on_alone(training: Training, parts: Sequence[Tensor]) -> None:
    """Steps on mini-batches that the others do not have."""
    try:
        for positions in parts if training.failure is None else ():
            sgd.step(training.network, training.data, positions, training.steps)
    except ClientFailure as failure:
        training.failure = failure
