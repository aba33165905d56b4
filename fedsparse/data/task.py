"""What a network learns to predict, and how its predictions are scored."""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLASSES", "IGNORED", "NEXT_TOKEN", "Task"]

IGNORED = -1  # in place of a label: nothing is predicted there


class Task(Protocol):
    """Loss and scores of logits `(n, classes)` against labels `(n,)`, or `(n, length, classes)` against `(n, length)`.

    Labels that are IGNORED count nowhere.

    Attributes:
        columns: names of the metrics.
    """

    @property
    def columns(self) -> tuple[str, ...]: ...

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of the labels, in nats; what training minimises."""
        ...

    def scores(self, logits: Tensor, y: Tensor) -> Tensor:
        """Of each sample, `(n, 3)` float64: summed cross-entropy, labels predicted right, labels."""
        ...

    def metrics(self, scores: Tensor, story: Tensor | None) -> Mapping[str, float]:
        """The columns, from the scores `(n, 3)` of a whole set and the story `(n,)` that each sample belongs to."""
        ...


class _Classes:
    """One class label a sample; accuracy and loss are means over samples."""

    columns: tuple[str, ...] = ("accuracy", "loss")

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=IGNORED)

    def scores(self, logits: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), ignore_index=IGNORED, reduction="none")
        parts = (losses.view(y.shape), logits.argmax(-1) == y, y != IGNORED)
        return torch.stack([part.double().unsqueeze(-1).flatten(1).sum(1) for part in parts], 1)

    def metrics(self, scores: Tensor, _story: Tensor | None) -> dict[str, float]:
        loss, right, labels = scores.sum(0).tolist()
        return {"accuracy": right / max(labels, 1), "loss": loss / max(labels, 1)}


class _NextToken(_Classes):
    """The next token at every place of a text; accuracy and loss are means over tokens.

    Perplexity is given both ways: `perplexity_token` is exp(mean loss of all tokens), `perplexity_story` the mean over
    stories of exp(mean loss of the story's tokens), which is what code for TinyStories reports (FedRTS, Huang et al.,
    NeurIPS 2025, arXiv:2501.19122; evidence: its code). The latter is never the smaller one when stories are of equal
    length, and a single bad story weighs heavily in it. Deviation: that code also averages accuracy over stories.
    """

    columns = ("accuracy", "loss", "perplexity_token", "perplexity_story")

    def metrics(self, scores: Tensor, story: Tensor | None) -> dict[str, float]:
        means = super().metrics(scores, story)
        numbers = torch.arange(len(scores)) if story is None else story.unique(return_inverse=True)[1]
        count = int(numbers.max()) + 1 if len(numbers) else 0
        totals = torch.zeros(count, 3, dtype=torch.float64).index_add_(0, numbers, scores)
        of_stories = (totals[:, 0] / totals[:, 2]).exp()
        return {
            **means,
            "perplexity_token": float(torch.tensor(means["loss"], dtype=torch.float64).exp()),
            "perplexity_story": float(of_stories.mean()) if count else 1.0,
        }


CLASSES: Task = _Classes()
NEXT_TOKEN: Task = _NextToken()
