"""MNIST and Fashion-MNIST: idx files, gzipped or plain."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_idx", "read_idx_folder"]

_BYTES = 0x08  # the idx code of unsigned bytes
_STEMS = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def read_idx_folder(root: Path, folder: str) -> tuple[NDArray[np.uint8], ...]:
    """Training pictures `(n, 1, 28, 28)` and labels `(n,)`, then test pictures and labels.

    Files are looked for in `root/folder/raw`, `root/folder`, `root/raw` and `root`.

    Raises:
        DataNotFoundError: none of these holds all four files.
        DataError: a file is damaged, or pictures and labels differ in number.
    """
    places = [root / folder / "raw", root / folder, root / "raw", root]
    for place in places:
        found = [next((f for f in (place / f"{s}.gz", place / s) if f.is_file()), None) for s in _STEMS]
        files = [f for f in found if f is not None]
        if len(files) == len(_STEMS):
            return (*_read_pair(files[0], files[1]), *_read_pair(files[2], files[3]))
    raise DataNotFoundError(
        f"{folder} was not found: expected {', '.join(_STEMS)}, each plain or with .gz, together in one of "
        f"{', '.join(map(str, places))}; set data.root to the folder that holds {folder}/raw"
    )


def _read_pair(pictures: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    x, y = read_idx(pictures, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DataError(f"{pictures} has {len(x)} pictures but {labels} has {len(y)} labels; fetch both again")
    return x[:, None], y


def read_idx(file: Path, axes: int) -> NDArray[np.uint8]:
    """Array of unsigned bytes with `axes` axes from one idx file: magic, one big-endian uint32 an axis, the bytes.

    Raises:
        DataError: not gzip, not idx, of other axes, or of a length that its header does not announce.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged or not gzip ({error}); fetch it again") from error
    magic, head = bytes([0, 0, _BYTES, axes]), 4 + 4 * axes
    if len(raw) < head or raw[:4] != magic:
        raise DataError(
            f"{file} is not an idx file of bytes with {axes} axes: expected at least {head} bytes starting with "
            f"{magic.hex()}, found {len(raw)} starting with {raw[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack_from(f">{axes}I", raw, 4)
    if len(raw) - head != math.prod(shape):
        raise DataError(
            f"{file} announces {math.prod(shape)} bytes of shape {shape} but holds {len(raw) - head}; fetch it again"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)
