"""Pictures in parquet files, one encoded picture and its labels a row, as Hugging Face stores image sets."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError

__all__ = ["find_shards", "read_parquet"]

_PICTURES = ("img", "image")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


def find_shards(folder: Path, split: str) -> list[Path]:
    """The files `split-*.parquet` of a folder in order; none where there are none.

    Raises:
        DataError: their names count more shards than are there.
    """
    files = sorted(folder.glob(f"{split}-*.parquet"))
    for file in files:
        named = _SHARD.search(file.name)
        if named and int(named[2]) != len(files):
            raise DataError(
                f"{folder} holds {len(files)} files {split}-*.parquet, but {file.name} is one of {int(named[2])}; "
                "fetch the missing ones or remove those of another version"
            )
    return files


def read_parquet(file: Path, columns: Sequence[str], side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(n, 3, side, side)` and labels `(n,)` of one file (needs `fedsparse[data]`).

    Args:
        file: with a struct column `img` or `image` of encoded `bytes`, and an integer label column.
        columns: names the label column may have; the first one present is read.
        side: height and width that every picture must have, in pixels.

    Raises:
        DataError: pyarrow or pillow is missing, a column is, or a row cannot be used.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{file} needs pyarrow: pip install 'fedsparse[data]'") from error
    try:
        names = parquet.read_schema(file).names
        picture = next((name for name in _PICTURES if name in names), None)
        label = next((name for name in columns if name in names), None)
        if picture is None or label is None:
            raise DataError(
                f"{file} has columns {', '.join(names)}; expected {' or '.join(_PICTURES)}, and {' or '.join(columns)}"
            )
        table = parquet.read_table(file, columns=[picture, label])
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last where a column's name is damaged
        raise DataError(f"{file} is not a readable parquet file: {error}") from error
    if not pyarrow.types.is_integer(table[label].type) or table[label].null_count:
        raise DataError(
            f"{file}: column {label} must hold a whole number in every row, it holds {table[label].type} "
            f"with {table[label].null_count} gaps"
        )
    return _decode(file, table[picture].to_pylist(), side), table[label].to_numpy().astype(np.int64)


def _decode(file: Path, rows: Sequence[object], side: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{file} needs pillow: pip install 'fedsparse[data]'") from error
    pictures = np.empty((len(rows), side, side, 3), dtype=np.uint8)
    for number, row in enumerate(rows):
        encoded = row.get("bytes") if isinstance(row, dict) else None
        if not isinstance(encoded, bytes):
            raise DataError(f"{file}: row {number} holds no encoded picture; expected a struct with bytes")
        try:
            with Image.open(io.BytesIO(encoded)) as picture:
                if picture.size != (side, side):
                    raise ValueError(f"it is {picture.width} x {picture.height} pixels, expected {side} x {side}")
                pictures[number] = np.asarray(picture.convert("RGB"))
        except Exception as error:  # a damaged picture raises nearly anything, each format its own
            raise DataError(f"{file}: the picture of row {number} cannot be used: {error}") from error
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
