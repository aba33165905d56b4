"""Data sets by name."""

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedsparse.data.arrays import read_digits, read_npz
from fedsparse.data.cifar import read_cifar10, read_cifar100
from fedsparse.data.federated import Dataset
from fedsparse.data.idx import read_idx_folder
from fedsparse.errors import ConfigError, DataError, DataNotFoundError

__all__ = ["datasets", "load"]

Arrays = tuple[NDArray[np.generic], ...]  # x, y, x_test, y_test

_ON_DISK: dict[str, Callable[[Path, np.random.Generator], Arrays]] = {
    "mnist": lambda root, _: read_idx_folder(root, "MNIST"),
    "fashion-mnist": lambda root, _: read_idx_folder(root, "FashionMNIST"),
    "cifar10": lambda root, _: read_cifar10(root),
    "cifar100": lambda root, _: read_cifar100(root),
    "npz": read_npz,
}
_EMBEDDED: dict[str, Callable[[np.random.Generator], Arrays]] = {"digits": read_digits}


def datasets() -> list[str]:
    """Names that `load` knows."""
    return sorted([*_ON_DISK, *_EMBEDDED])


def load(
    name: str,
    root: Path | None,
    *,
    generator: np.random.Generator,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and test set.

    Args:
        name: one of `datasets()`.
        root: folder of the files, or the file itself for `npz`; not needed for embedded sets.
        generator: draws the test split of sets that have none, and the subsets.
        image_size: side pictures are resized to (bilinear, antialiased), in pixels.
        train_limit, test_limit: sizes of class-balanced subsets.

    Raises:
        ConfigError: unknown name, or `image_size` for data that are no pictures.
        DataNotFoundError: files are missing.
        DataError: files are damaged or do not fit.
    """
    if name in _EMBEDDED:
        arrays = _EMBEDDED[name](generator)
    elif name in _ON_DISK:
        if root is None:
            raise DataNotFoundError(f"data set {name!r} is read from disk; set data.root to the folder that holds it")
        if not root.exists():
            raise DataNotFoundError(
                f"the data folder {root} does not exist; set data.root to the folder that holds {name}"
            )
        arrays = _ON_DISK[name](root, generator)
    else:
        near = difflib.get_close_matches(name, datasets(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown data set {name!r}{hint} (known: {', '.join(datasets())})")
    x, y, x_test, y_test = arrays
    classes = int(max(y.max(initial=0), y_test.max(initial=0))) + 1
    keep, keep_test = _balanced(y, train_limit, generator), _balanced(y_test, test_limit, generator)
    train = _pictures(x[keep], image_size)
    mean, std = _moments(train)
    test = _pictures(x_test[keep_test], image_size)
    labels, test_labels = (torch.from_numpy(a.astype(np.int64)) for a in (y[keep], y_test[keep_test]))
    return Dataset(train, labels, classes, mean, std), Dataset(test, test_labels, classes, mean, std)


def _balanced(labels: NDArray[np.generic], limit: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Positions of `limit` samples, as evenly over the classes as they allow, in the original order."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    if limit < 1:
        raise ConfigError(f"a limit of samples must be at least 1, got {limit}")
    order = generator.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before a sample
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])


def _pictures(x: NDArray[np.generic], size: int | None) -> Tensor:
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"samples must be uint8 or floating, got {x.dtype}")
    tensor = torch.from_numpy(np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32)))
    if size is None or tuple(tensor.shape[2:]) == (size, size):
        return tensor
    if tensor.ndim != 4 or size < 1:
        raise ConfigError(
            f"image_size={size} needs pictures (n, channels, h, w) and a side >= 1, got {tuple(tensor.shape)}"
        )
    resized = F.interpolate(tensor.to(torch.float32), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8) if tensor.dtype == torch.uint8 else resized


def _moments(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation per channel of uint8 pictures, as shares of 255; nothing for other data."""
    if x.dtype != torch.uint8 or x.ndim != 4:
        return None, None
    counts = torch.stack([torch.bincount(x[:, c].reshape(-1), minlength=256) for c in range(x.shape[1])]).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = (shares * levels).sum(1)
    std = ((shares * levels**2).sum(1) - mean**2).clamp(min=0).sqrt()
    return mean.float(), std.clamp(min=1e-6).float()
