"""MNIST and Fashion-MNIST: idx files, gzipped or plain."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_idx", "read_idx_folder"]

_BYTES = 0x08  # the idx code of unsigned bytes


def read_idx_folder(root: Path, folder: str) -> tuple[NDArray[np.uint8], ...]:
    """Training pictures `(n, 1, 28, 28)` and labels `(n,)`, then test pictures and labels.

    Files are looked for in `root/folder/raw`, `root/folder`, `root/raw` and `root`.
    """
    places = [root / folder / "raw", root / folder, root / "raw", root]
    stems = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    for place in places:
        found = [next((f for f in (place / f"{s}.gz", place / s) if f.is_file()), None) for s in stems]
        files = [f for f in found if f is not None]
        if len(files) == len(stems):
            train_x, train_y, test_x, test_y = (read_idx(f, axes) for f, axes in zip(files, (3, 1, 3, 1), strict=True))
            for x, y, file in ((train_x, train_y, files[0]), (test_x, test_y, files[2])):
                if len(x) != len(y):
                    raise DataError(f"{file} has {len(x)} pictures, its label file {len(y)} labels")
            return train_x[:, None], train_y, test_x[:, None], test_y
    raise DataNotFoundError(
        f"{folder} was not found: looked for {stems[0]}.gz and its three companions in "
        f"{', '.join(map(str, places))}; set data.root to the folder that holds {folder}/raw"
    )


def read_idx(file: Path, axes: int) -> NDArray[np.uint8]:
    """Array of unsigned bytes with `axes` axes from one idx file."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged or not gzip ({error}); fetch it again") from error
    head = 4 + 4 * axes
    if len(raw) < head or raw[:4] != bytes([0, 0, _BYTES, axes]):
        raise DataError(
            f"{file} is not an idx file of bytes with {axes} axes: it starts with {raw[:4].hex() or 'nothing'}"
        )
    shape = np.frombuffer(raw, dtype=">u4", count=axes, offset=4).astype(np.int64)
    if len(raw) - head != int(shape.prod()):
        raise DataError(f"{file} should hold {shape.prod()} bytes of shape {tuple(shape)}, it holds {len(raw) - head}")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)
