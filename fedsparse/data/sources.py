"""Data sets by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsparse.data.cifar import CIFAR10, CIFAR100
from fedsparse.data.digits import read_digits
from fedsparse.data.federated import Dataset
from fedsparse.data.idx import read_idx_folder
from fedsparse.data.npz import read_npz
from fedsparse.data.pictures import moments, resize
from fedsparse.data.subset import balanced
from fedsparse.data.texts import TEXTS, Cutting, load_text
from fedsparse.errors import ConfigError, DataError, DataNotFoundError

__all__ = ["datasets", "load"]

Arrays = tuple[NDArray[np.generic], ...]  # x, y, x_test, y_test


@dataclass(frozen=True)
class _Source:
    """How a data set is read.

    Attributes:
        read: from its folder or file; the generator draws a test split where the files have none.
        classes: number of labels; None where the largest label tells.
        embedded: whether it needs no files.
    """

    read: Callable[[Path, np.random.Generator], Arrays]
    classes: int | None
    embedded: bool = False


_SOURCES = {
    "cifar10": _Source(lambda root, _: CIFAR10.read(root), 10),
    "cifar100": _Source(lambda root, _: CIFAR100.read(root), 100),
    "digits": _Source(lambda _, generator: read_digits(generator), 10, embedded=True),
    "fashion-mnist": _Source(lambda root, _: read_idx_folder(root, "FashionMNIST"), 10),
    "mnist": _Source(lambda root, _: read_idx_folder(root, "MNIST"), 10),
    "npz": _Source(read_npz, None),
}


def datasets() -> list[str]:
    """Names that `load` knows."""
    return sorted((*_SOURCES, *TEXTS))


def load(
    name: str,
    root: Path | None,
    *,
    generator: np.random.Generator,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    cutting: Cutting | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and test set; pictures of both are normalised by the moments of the training pictures taken.

    Where a text set is split, and how, stands with its reader in `data.texts`.

    Args:
        name: one of `datasets()`.
        root: folder of the files, or the file itself for `npz`; not needed for embedded sets.
        generator: draws the test split of sets that have none, and the subsets.
        image_size: side pictures are resized to (bilinear, antialiased), in pixels.
        train_limit, test_limit: sizes of class-balanced subsets; of text sets the number of texts.
        cutting: how the texts of a text set become samples; None means blocks of 256 bytes.

    Raises:
        ConfigError: unknown name, a limit or size below 1, or `image_size` for data that are no pictures.
        DataNotFoundError: files are missing.
        DataError: files are damaged or do not fit.
    """
    _check(name, root)
    if name in TEXTS:
        if image_size is not None:
            raise ConfigError(f"image_size={image_size} needs pictures, {name} is a text set; leave it out")
        limits = {"train_limit": train_limit, "test_limit": test_limit}
        return load_text(name, root or Path(), cutting or Cutting(), generator=generator, **limits)
    x, y, x_test, y_test = _read(name, root, generator)
    classes = _SOURCES[name].classes or int(max(y.max(), y_test.max())) + 1
    for labels in (y, y_test):
        if not 0 <= labels.min() <= labels.max() < classes:
            raise DataError(
                f"{name} in {root} has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}; "
                "the files are damaged or of another set"
            )
    kept, kept_test = balanced(y, train_limit, generator), balanced(y_test, test_limit, generator)
    train = resize(_samples(x[kept]), image_size)
    test = resize(_samples(x_test[kept_test]), image_size)
    mean, std = moments(train)
    train_labels, test_labels = (torch.from_numpy(a.astype(np.int64)) for a in (y[kept], y_test[kept_test]))
    return Dataset(train, train_labels, classes, mean, std), Dataset(test, test_labels, classes, mean, std)


def _check(name: str, root: Path | None) -> None:
    if name not in datasets():
        near = difflib.get_close_matches(name, datasets(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown data set {name!r}{hint} (known: {', '.join(datasets())})")
    if root is None and not (name in _SOURCES and _SOURCES[name].embedded):
        raise DataNotFoundError(f"data set {name!r} is read from disk; set data.root to the folder that holds it")


def _read(name: str, root: Path | None, generator: np.random.Generator) -> Arrays:
    arrays = _SOURCES[name].read(root or Path(), generator)
    if not len(arrays[1]) or not len(arrays[3]):
        raise DataError(
            f"{name} in {root} has {len(arrays[1])} training and {len(arrays[3])} test samples; each needs at least one"
        )
    return arrays


def _samples(x: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32)))
