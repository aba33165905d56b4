"""MNIST and Fashion-MNIST: idx files, gzipped or plain."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, DataNotFoundError

__all__ = ["read_idx", "read_idx_folder"]

_BYTES = 0x08  # the idx code of unsigned bytes
_LARGEST = 1 << 32  # bytes of one file; the largest set of this form has 550 million
_AT_ONCE = 1 << 20  # bytes
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
    head = 4 + 4 * axes
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            start = stream.read(head)
            shape = _shape(file, start, axes)
            body = _read(stream, math.prod(shape) + 1)  # one more tells whether there is more
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged or not gzip ({error}); fetch it again") from error
    if len(body) != math.prod(shape):
        held = len(body) if len(body) < math.prod(shape) else "more"
        raise DataError(f"{file} announces {math.prod(shape)} bytes of shape {shape} but holds {held}; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _read(stream: BinaryIO | gzip.GzipFile, most: int) -> bytes:
    """At most `most` bytes, in memory that follows from how many there are and not from what a header announces."""
    parts = []
    while most and (part := stream.read(min(most, _AT_ONCE))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def _shape(file: Path, start: bytes, axes: int) -> tuple[int, ...]:
    """Extents in the first bytes of a file."""
    magic, head = bytes([0, 0, _BYTES, axes]), 4 + 4 * axes
    if len(start) < head or start[:4] != magic:
        raise DataError(
            f"{file} is not an idx file of bytes with {axes} axes: expected at least {head} bytes starting with "
            f"{magic.hex()}, found {start[:4].hex() or 'nothing'}"
            + ("" if len(start) == head else f" in {len(start)} bytes")
        )
    shape: tuple[int, ...] = struct.unpack_from(f">{axes}I", start, 4)
    if math.prod(shape) > _LARGEST:
        raise DataError(
            f"{file} announces {math.prod(shape)} bytes of shape {shape}, more than {_LARGEST}; fetch it again"
        )
    return shape
