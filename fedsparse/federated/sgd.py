"""The one loop over mini-batches."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import ClientSettings

__all__ = ["batches", "evaluate", "optimizer", "train"]

_OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], ClientSettings], torch.optim.Optimizer]] = {
    "sgd": lambda p, s: torch.optim.SGD(p, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda p, s: torch.optim.Adam(p, lr=s.lr, weight_decay=s.weight_decay),
    "adamw": lambda p, s: torch.optim.AdamW(p, lr=s.lr, weight_decay=s.weight_decay),
}


def optimizer(model: nn.Module, settings: ClientSettings) -> torch.optim.Optimizer:
    """A fresh optimiser over all trainable parameters."""
    return _OPTIMIZERS[settings.optimizer]((p for p in model.parameters() if p.requires_grad), settings)


def batches(samples: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled positions of one epoch, `size` at a time; the last batch may be smaller."""
    order = torch.randperm(samples, generator=generator)
    yield from order.split(size) if samples else ()  # split() gives one empty part for no samples


def train(
    model: nn.Module, data: Dataset, settings: ClientSettings, *, epochs: int, generator: torch.Generator
) -> None:
    """Training for the data's task with a fresh optimiser.

    A batch of a single sample is skipped where the model has batch norm, which has no variance to divide by then.

    Raises:
        ClientFailure: no sample to train on, or the loss is no longer finite.
    """
    device = next(model.parameters()).device
    alone_is_fine = not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    steps = optimizer(model, settings)
    model.train()
    trained = 0
    for _ in range(epochs):
        for positions in batches(len(data), settings.batch_size, generator):
            if len(positions) == 1 and not alone_is_fine:
                continue
            x, y = data.batch(positions)
            steps.zero_grad()
            loss = data.task.loss(model(x.to(device)), y.to(device))
            if not math.isfinite(loss.item()):
                raise ClientFailure(f"the training loss became {loss.item()}; a smaller learning rate may help")
            loss.backward()
            steps.step()
            trained += len(positions)
    steps.zero_grad()  # gradients are not part of what a client keeps
    if epochs and not trained:
        raise ClientFailure(
            f"there is nothing to train on: {len(data)} samples in batches of {settings.batch_size}"
            + ("" if alone_is_fine else ", of which batch norm needs two or more")
        )


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
