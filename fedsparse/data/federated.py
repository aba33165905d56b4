"""Samples in memory, and how clients share them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsparse.data.task import CLASSES, IGNORED, NEXT_TOKEN, Task
from fedsparse.errors import DataError

__all__ = ["Dataset", "FederatedDataset"]


_TOGETHER = 256  # samples evaluated together
_LOGITS = 2**26  # numbers that their logits may have: 256 MiB

_PLACES = {torch.uint8: 1, torch.float32: 1, torch.int32: 2}  # axes of the labels, by type of the samples


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples. Pictures stay bytes, and tokens 32 bits wide, until a batch asks for them.

    Attributes:
        x: `(n, channels, height, width)` uint8 pictures, `(n, ...)` float32, or `(n, length)` int32 tokens; where a
            text has ended, IGNORED, which a batch shows as token 0.
        y: `(n,)` int64 labels in [0, num_classes); of tokens the next ones, `(n, length)` int32, or IGNORED.
        num_classes: number of labels; of tokens the size of the vocabulary.
        mean, std: `(channels,)` float32 of the pictures as shares of 255, used to normalise; None leaves x as it is.
        story: `(n,)` int64, the text that each sample of tokens was cut from; None where every sample stands alone.

    Raises:
        DataError: types, lengths or labels do not fit together.
    """

    x: Tensor
    y: Tensor
    num_classes: int
    mean: Tensor | None = None
    std: Tensor | None = None
    story: Tensor | None = None

    def __post_init__(self) -> None:
        label = torch.int32 if self.is_text else torch.int64
        if self.x.dtype not in _PLACES or self.y.dtype != label or self.y.ndim != _PLACES[self.x.dtype]:
            raise DataError(
                "a Dataset holds uint8 or float32 samples and (n,) int64 labels, or int32 tokens and the next ones, "
                f"got {self.x.dtype} and {self.y.dtype} {tuple(self.y.shape)}; convert them first"
            )
        if len(self.x) != len(self.y):
            raise DataError(f"there are {len(self.x)} samples but {len(self.y)} labels; expected one label a sample")
        if (self.mean is None) != (self.std is None):
            raise DataError("mean and std normalise together; give both or neither")
        if self.story is not None and self.story.shape != (len(self.x),):
            raise DataError(f"there are {len(self.x)} samples but stories of shape {tuple(self.story.shape)}")
        first = IGNORED if self.is_text else 0
        if self.y.numel() and not first <= int(self.y.min()) <= int(self.y.max()) < self.num_classes:
            raise DataError(
                f"labels must lie in [0, {self.num_classes}), found {int(self.y.min())} to {int(self.y.max())}; "
                "number the classes from 0 or raise num_classes"
            )

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens."""
        return self.x.dtype == torch.int32

    @property
    def task(self) -> Task:
        """What is predicted: the class of a sample, or the next token at every place of a text."""
        return NEXT_TOKEN if self.is_text else CLASSES

    @property
    def chunk(self) -> int:
        """Samples to evaluate together: as many as keep the logits, one for each label and class, in bounds."""
        logits = self.num_classes * (self.y.shape[1] if self.is_text else 1)
        return max(1, min(_TOGETHER, _LOGITS // logits))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def subset(self, indices: Tensor) -> "Dataset":
        """The samples at `indices` `(k,)` int64, in that order."""
        story = None if self.story is None else self.story[indices]
        return replace(self, x=self.x[indices], y=self.y[indices], story=story)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 samples, normalised, or int64 tokens, and int64 labels at `indices` `(k,)` int64."""
        if self.is_text:
            return self.x[indices].long().clamp(min=0), self.y[indices].long()
        x = self.x[indices].to(torch.float32)
        if self.mean is not None and self.std is not None:
            x = (x / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        return x, self.y[indices]


@dataclass(frozen=True, eq=False)
class FederatedDataset:
    """A training set dealt to clients, and one test set.

    Attributes:
        train, test: samples.
        clients: sample indices `(n_k,)` int64 of each client, without overlap.
        name: of the data set.

    Raises:
        DataError: an index lies outside the training set, or two clients hold the same sample.
    """

    train: Dataset
    test: Dataset
    clients: tuple[Tensor, ...]
    name: str

    def __post_init__(self) -> None:
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *self.clients])
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.train):
            raise DataError(
                f"clients of {self.name!r} hold sample indices {int(indices.min())} to {int(indices.max())}, "
                f"the training set has 0 to {len(self.train) - 1}; deal the indices of this training set"
            )
        if len(indices.unique()) != len(indices):
            raise DataError(f"clients of {self.name!r} share samples; give every sample to one client only")

    def client(self, number: int) -> Dataset:
        """Samples of one client."""
        return self.train.subset(self.clients[number])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each client."""
        return tuple(len(indices) for indices in self.clients)
