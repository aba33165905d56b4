"""Data without files of a fixed form: any .npz, and scikit-learn's embedded digits."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_digits", "read_npz", "split_by_class"]

_TEST_SHARE = 0.2


def read_digits(generator: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
    """1,797 handwritten digits `(n, 1, 8, 8)` uint8 of 10 classes; a fifth of each class is the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the embedded digits come with scikit-learn: pip install 'fedsparse[data]'") from error
    digits = load_digits()
    x = (digits.images * (255 / 16)).round().astype(np.uint8)[:, None]  # 16 levels of ink
    return split_by_class(x, digits.target.astype(np.int64), generator)


def read_npz(file: Path, generator: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
    """x, y, x_test, y_test of an .npz file; without a test part a fifth of each class is split off."""
    if not file.is_file():
        raise DataNotFoundError(f"{file} was not found; data.root must name an .npz file with arrays x and y")
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not a readable .npz file without pickles: {error}") from error
    if not {"x", "y"} <= found.keys() or ("x_test" in found) != ("y_test" in found):
        raise DataError(
            f"{file} holds {', '.join(found) or 'nothing'}; expected x and y, and x_test with y_test or neither"
        )
    for part in ("", "_test"):
        if f"x{part}" in found and len(found[f"x{part}"]) != len(found[f"y{part}"]):
            raise DataError(
                f"{file}: x{part} has {len(found[f'x{part}'])} samples, y{part} {len(found[f'y{part}'])} labels"
            )
    if not np.issubdtype(found["y"].dtype, np.integer):
        raise DataError(f"{file}: labels y must be integers, got {found['y'].dtype}")
    if "x_test" in found:
        return found["x"], found["y"], found["x_test"], found["y_test"]
    return split_by_class(found["x"], found["y"], generator)


def split_by_class(
    x: NDArray[np.generic], y: NDArray[np.integer], generator: np.random.Generator
) -> tuple[NDArray[np.generic], ...]:
    """x and y without, then with, a random fifth of each class."""
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        held[members[: round(len(members) * _TEST_SHARE)]] = True
    return x[~held], y[~held], x[held], y[held]
