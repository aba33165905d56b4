"""Any data set as numpy's .npz file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.data.subset import held_out
from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_npz"]

_TEST_SHARE = 0.2


def read_npz(file: Path, generator: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
    """x, y, x_test, y_test of an .npz file; without a test part a fifth of each class is split off.

    x is `(n, channels, height, width)` or `(n, features)`, uint8 or floating; y is `(n,)` whole numbers from 0.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: the file is damaged, holds pickled objects, or its arrays do not fit together.
    """
    if not file.is_file():
        raise DataNotFoundError(f"there is no file {file}; data.root must name an .npz file with arrays x and y")
    arrays = _read_arrays(file)
    if not {"x", "y"} <= arrays.keys() or ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(
            f"{file} holds {', '.join(arrays) or 'nothing'}; expected x and y, and x_test with y_test or neither"
        )
    x, y = arrays["x"], arrays["y"]
    _check_pair(file, "", x, y)
    if "x_test" not in arrays:
        held = held_out(y, _TEST_SHARE, generator)
        if not held.any():
            raise DataError(f"{file}: no class of y has the 3 samples that a test split needs; add x_test and y_test")
        return x[~held], y[~held], x[held], y[held]
    x_test, y_test = arrays["x_test"], arrays["y_test"]
    _check_pair(file, "_test", x_test, y_test)
    if x_test.shape[1:] != x.shape[1:] or x_test.dtype != x.dtype:
        raise DataError(
            f"{file}: samples of x_test are {x_test.dtype} {x_test.shape[1:]}, those of x {x.dtype} {x.shape[1:]}; "
            "they must agree"
        )
    return x, y, x_test, y_test


def _read_arrays(file: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with file.open("rb") as stream:  # opened here, for numpy leaves a damaged file open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name; write it with numpy.savez(file, x=..., y=...)")
            arrays = {name: archive[name] for name in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds files that are no arrays")
            return arrays
    except Exception as error:  # numpy, zipfile and zlib each raise their own kinds for a damaged file
        raise DataError(f"{file} is not a readable .npz file of plain arrays: {error}") from error


def _check_pair(file: Path, part: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> None:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{file}: y{part} must be one axis of integer labels, got {y.dtype} {y.shape}")
    if x.ndim < 2 or len(x) != len(y) or not len(x):
        raise DataError(
            f"{file}: x{part} must be (samples, ...) with a sample for each of the {len(y)} labels of y{part}, "
            f"and at least one; got shape {x.shape}"
        )
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{file}: x{part} must be uint8 or floating, got {x.dtype}")
    if x.dtype != np.uint8 and not _finite_as_float32(x):
        raise DataError(f"{file}: x{part} holds NaN, infinite numbers or some beyond float32; remove or replace them")


def _finite_as_float32(x: NDArray[np.generic]) -> bool:
    with np.errstate(over="ignore"):  # a number too large becomes infinite, and that is the answer
        return bool(np.isfinite(x.astype(np.float32, copy=False)).all())
