"""CIFAR-10 and CIFAR-100: the python pickles, or parquet files with encoded pictures."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_cifar10", "read_cifar100", "read_parquet", "read_pickle"]

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]

# All that these pickles need: rebuilding numpy arrays. Anything else could run code.
_ADMITTED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "scalar", "ndarray", "dtype")
} | {("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")
        return super().find_class(module, name)


def read_cifar10(root: Path) -> Arrays:
    """Training pictures `(50000, 3, 32, 32)` and labels, then test pictures and labels."""
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    return _read(root, "cifar-10-batches-py", "cifar10", batches, ["test_batch"], "labels", ("label",))


def read_cifar100(root: Path) -> Arrays:
    """As `read_cifar10`, with the 100 fine labels."""
    return _read(root, "cifar-100-python", "cifar100", ["train"], ["test"], "fine_labels", ("fine_label", "label"))


def _read(
    root: Path,
    folder: str,
    parquet: str,
    train: Sequence[str],
    test: Sequence[str],
    key: str,
    columns: tuple[str, ...],
) -> Arrays:
    for place in (root / folder, root):
        if all((place / name).is_file() for name in (*train, *test)):
            return (
                *_join([read_pickle(place / n, key) for n in train]),
                *_join([read_pickle(place / n, key) for n in test]),
            )
    for place in (root / parquet, root):
        parts = {split: sorted(place.glob(f"{split}-*.parquet")) for split in ("train", "test")}
        if all(parts.values()):
            return (*_join([read_parquet(f, columns) for f in parts["train"]]),
                    *_join([read_parquet(f, columns) for f in parts["test"]]))  # fmt: skip
    raise DataNotFoundError(
        f"{parquet} was not found: looked for {train[0]} in {root / folder} and {root}, and for train-*.parquet and "
        f"test-*.parquet in {root / parquet} and {root}; set data.root to the folder that holds one of them"
    )


def _join(
    parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def read_pickle(file: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(n, 3, 32, 32)` and labels of one batch file."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        pictures, labels = batch[b"data"], batch[key.encode()]
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{file} is not a CIFAR batch: {error}") from error
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or pictures.shape != (len(labels), 3072):
        found = f"{pictures.dtype} {pictures.shape}" if isinstance(pictures, np.ndarray) else type(pictures).__name__
        raise DataError(f"{file} should hold uint8 pictures of shape ({len(labels)}, 3072), it holds {found}")
    return pictures.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def read_parquet(file: Path, columns: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(n, channels, h, w)` and labels of a parquet file with encoded pictures (needs `fedsparse[data]`)."""
    try:
        import pyarrow
        import pyarrow.parquet
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(f"{file} needs pyarrow and pillow: pip install 'fedsparse[data]'") from error
    try:
        table = pyarrow.parquet.read_table(file)
        names = table.column_names
        picture = next(name for name in ("img", "image") if name in names)
        label = next(name for name in columns if name in names)
        encoded = [entry["bytes"] for entry in table[picture].to_pylist()]
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in encoded])
        labels = table[label].to_numpy().astype(np.int64)
    except StopIteration:
        raise DataError(
            f"{file} has columns {', '.join(names)}; expected img or image, and {' or '.join(columns)}"
        ) from None
    except (
        pyarrow.ArrowException,
        UnidentifiedImageError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        raise DataError(f"{file} is not a parquet file of pictures: {error}") from error
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), labels
