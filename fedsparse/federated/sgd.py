"""The loop over mini-batches."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import ClientSettings
from fedsparse.methods.roles import AroundStep, LearningRate, Penalty

__all__ = ["batches", "check_batch", "check_loss", "evaluate", "optimizer", "step", "train"]

_OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], ClientSettings], torch.optim.Optimizer]] = {
    "sgd": lambda p, s: torch.optim.SGD(p, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda p, s: torch.optim.Adam(p, lr=s.lr, weight_decay=s.weight_decay),
    "adamw": lambda p, s: torch.optim.AdamW(p, lr=s.lr, weight_decay=s.weight_decay),
}


def optimizer(model: nn.Module, settings: ClientSettings) -> torch.optim.Optimizer:
    """A fresh optimiser over all trainable parameters."""
    return _OPTIMIZERS[settings.optimizer]((p for p in model.parameters() if p.requires_grad), settings)


def batches(samples: int, size: int, generator: torch.Generator, *, fewest: int = 1) -> Iterator[Tensor]:
    """Shuffled positions of one epoch, `size` at a time; the last batch may be smaller, down to `fewest`."""
    order = torch.randperm(samples, generator=generator)
    yield from (part for part in order.split(size) if len(part) >= fewest)


def check_batch(model: nn.Module, data: Dataset, batch_size: int) -> int:
    """Fewest samples of a batch that the model can train on: 2 with batch norm, whose variance needs them; else 1.

    Raises:
        ClientFailure: no batch of `data` has that many.
    """
    fewest = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) else 1
    if min(len(data), batch_size) < fewest:
        raise ClientFailure(
            f"there is nothing to train on: {len(data)} samples in batches of {batch_size}"
            + ("" if fewest == 1 else ", of which batch norm needs two or more")
        )
    return fewest


def train(
    model: nn.Module,
    data: Dataset,
    settings: ClientSettings,
    *,
    epochs: int,
    generator: torch.Generator,
    steps: torch.optim.Optimizer | None = None,
    penalty: Penalty | None = None,
    learning_rate: LearningRate | None = None,
    around_step: AroundStep = nullcontext,
) -> None:
    """Training for the data's task.

    A batch of a single sample is skipped where the model has batch norm, which has no variance to divide by then.

    Args:
        generator: shuffles the samples of each epoch; a call leaves it where the next may go on.
        steps: optimiser to go on with; a fresh one otherwise. Its rate is the settings' again afterwards.
        penalty, learning_rate, around_step: see `Client.sgd`.

    Raises:
        ClientFailure: no sample to train on, or the loss is no longer finite.
    """
    if not epochs:
        return
    fewest = check_batch(model, data, settings.batch_size)
    last = len(data) % settings.batch_size
    total = epochs * (len(data) // settings.batch_size + (last >= fewest))
    steps = steps or optimizer(model, settings)
    model.train()
    done = 0
    for _ in range(epochs):
        for positions in batches(len(data), settings.batch_size, generator, fewest=fewest):
            if learning_rate is not None:
                _set_rate(steps, learning_rate(done, total, settings.lr))
            step(model, data, positions, steps, penalty=penalty, around_step=around_step)
            done += 1
    steps.zero_grad()  # gradients are not part of what a client keeps
    _set_rate(steps, settings.lr)


def step(
    model: nn.Module,
    data: Dataset,
    positions: Tensor,
    steps: torch.optim.Optimizer,
    *,
    penalty: Penalty | None = None,
    around_step: AroundStep = nullcontext,
) -> None:
    """One step of `train`, on the samples at `positions`.

    Raises:
        ClientFailure: the loss is not finite.
    """
    device = next(model.parameters()).device
    x, y = data.batch(positions)
    steps.zero_grad()
    with around_step():
        loss = data.task.loss(model(x.to(device)), y.to(device))
        if penalty is not None:
            loss = loss + penalty(model)
        check_loss(loss.item())
        loss.backward()
    steps.step()


def check_loss(loss: float) -> None:
    """Raises ClientFailure unless a training loss is finite."""
    if not math.isfinite(loss):
        raise ClientFailure(f"the training loss became {loss}; a smaller learning rate may help")


def _set_rate(steps: torch.optim.Optimizer, rate: float) -> None:
    for group in steps.param_groups:
        group["lr"] = rate


def evaluate(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Metrics of the data's task over all samples, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    scores = [torch.empty(0, 3, dtype=torch.float64)]
    with torch.no_grad():
        for positions in torch.arange(len(data)).split(data.chunk):
            if len(positions):  # split() gives one empty part for no samples
                x, y = data.batch(positions)
                scores.append(data.task.scores(model(x.to(device)), y.to(device)).cpu())
    return dict(data.task.metrics(torch.cat(scores), data.story))
