"""CIFAR-10 and CIFAR-100: the python batch files, or parquet files of the same pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.data.batches import read_batch
from fedsparse.data.parquet import find_shards, read_parquet
from fedsparse.errors import DataNotFoundError

__all__ = ["CIFAR10", "CIFAR100", "Cifar"]

Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class Cifar:
    """How one of the two sets lies on disk.

    Attributes:
        folder, train, test, key: folder of the batch files, their names, and the entry with the labels.
        parquet, columns: folder of the parquet files, and names their label column may have.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    key: str
    parquet: str
    columns: tuple[str, ...]

    def read(self, root: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Training pictures `(n, 3, 32, 32)` and labels `(n,)`, then test pictures and labels.

        Batch files are preferred, looked for in `root/folder` and `root`; parquet files in `root/parquet` and `root`.

        Raises:
            DataNotFoundError: none of these holds a complete set.
            DataError: a file is damaged.
        """
        for place in (root / self.folder, root):
            if all((place / name).is_file() for name in (*self.train, self.test)):
                train = _join([read_batch(place / name, self.key) for name in self.train])
                return (*train, *read_batch(place / self.test, self.key))
        for place in (root / self.parquet, root):
            train_files, test_files = find_shards(place, "train"), find_shards(place, "test")
            if train_files and test_files:
                return (*self._read_shards(train_files), *self._read_shards(test_files))
        raise DataNotFoundError(
            f"{self.parquet} was not found: expected {', '.join((*self.train, self.test))} in {root / self.folder} or "
            f"{root}, or train-*.parquet and test-*.parquet in {root / self.parquet} or {root}; "
            "set data.root to the folder that holds one of these"
        )

    def _read_shards(self, files: Sequence[Path]) -> Pair:
        return _join([read_parquet(file, self.columns, 32) for file in files])


CIFAR10 = Cifar(
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    key="labels",
    parquet="cifar10",
    columns=("label",),
)
CIFAR100 = Cifar(
    folder="cifar-100-python",
    train=("train",),
    test="test",
    key="fine_labels",
    parquet="cifar100",
    columns=("fine_label", "label"),
)


def _join(parts: Sequence[Pair]) -> Pair:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
