"""Samples in memory, and how clients share them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsparse.errors import DataError

__all__ = ["Dataset", "FederatedDataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled samples. Pictures stay bytes until a batch asks for them.

    Attributes:
        x: `(n, channels, height, width)` uint8 pictures, or `(n, ...)` float32.
        y: `(n,)` int64 labels in [0, num_classes).
        num_classes: number of labels.
        mean, std: `(channels,)` float32 of the pictures as shares of 255, used to normalise; None leaves x as it is.

    Raises:
        DataError: types, lengths or labels do not fit together.
    """

    x: Tensor
    y: Tensor
    num_classes: int
    mean: Tensor | None = None
    std: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.dtype not in (torch.uint8, torch.float32) or self.y.dtype != torch.int64 or self.y.ndim != 1:
            raise DataError(
                "a Dataset holds uint8 or float32 samples and (n,) int64 labels, "
                f"got {self.x.dtype} and {self.y.dtype} {tuple(self.y.shape)}; convert them first"
            )
        if len(self.x) != len(self.y):
            raise DataError(f"there are {len(self.x)} samples but {len(self.y)} labels; expected one label a sample")
        if (self.mean is None) != (self.std is None):
            raise DataError("mean and std normalise together; give both or neither")
        if len(self.y) and not 0 <= int(self.y.min()) <= int(self.y.max()) < self.num_classes:
            raise DataError(
                f"labels must lie in [0, {self.num_classes}), found {int(self.y.min())} to {int(self.y.max())}; "
                "number the classes from 0 or raise num_classes"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def subset(self, indices: Tensor) -> "Dataset":
        """The samples at `indices` `(k,)` int64, in that order."""
        return replace(self, x=self.x[indices], y=self.y[indices])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 samples, normalised, and labels at `indices` `(k,)` int64."""
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
