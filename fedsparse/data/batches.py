"""CIFAR's batch files: python pickles, read without letting them name any code.

A pickle runs what it names. These need four names, to rebuild byte arrays, and each stands here for a small
function of this file, so that not even numpy's own rebuilding (which trusts its input) sees the data.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError

__all__ = ["read_batch"]

_PIXELS = 3 * 32 * 32


class _ByteType:
    """In place of numpy.dtype: unsigned bytes, or an error."""

    def __init__(self, code: object, *_flags: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, expected 'u1'")

    def __setstate__(self, _state: object) -> None:
        """Byte order and alignment mean nothing for bytes."""


class _ByteArray:
    """In place of numpy.ndarray: `array` is set from the pickled state."""

    array: NDArray[np.uint8]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, fortran, raw = state
        if not isinstance(kind, _ByteType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not made of bytes")
        self.array = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


class _Function:
    """In place of a function: a pickle may call it but not write attributes to it, which its BUILD code could."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("it writes to a function")


def _empty(_kind: object, _shape: object, _code: object) -> _ByteArray:
    return _ByteArray()


def _latin1(text: str, _encoding: object) -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2."""
    return text.encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    _stand_ins: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): _ByteArray,
        ("numpy", "dtype"): _ByteType,
        ("numpy.core.multiarray", "_reconstruct"): _Function(_empty),
        ("numpy._core.multiarray", "_reconstruct"): _Function(_empty),
        ("_codecs", "encode"): _Function(_latin1),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only numpy arrays of bytes are admitted")
        return self._stand_ins[module, name]


def _check_memo(raw: bytes) -> None:
    """Refuses a number for something remembered that exceeds the file's length: Python makes room for all below it."""
    for code, argument, _ in pickletools.genops(raw):
        if "PUT" in code.name and argument is not None and int(argument) > len(raw):
            raise pickle.UnpicklingError(f"it numbers what it remembers up to {argument} in {len(raw)} bytes")


def read_batch(file: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures `(n, 3, 32, 32)` and the labels `(n,)` stored under `key` of one batch file.

    Raises:
        DataError: not a pickle, one that names anything but byte arrays, or one of other contents.
    """
    try:
        raw = file.read_bytes()
        _check_memo(raw)
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{file} is not a CIFAR batch of plain pictures and labels: {error}") from error
    entries = batch if isinstance(batch, dict) else {}
    pictures, labels = entries.get(b"data"), entries.get(key.encode())
    if not isinstance(pictures, _ByteArray) or not isinstance(labels, list):
        raise DataError(
            f"{file} should hold a dictionary with an array b'data' and a list {key.encode()!r}, "
            f"it holds {', '.join(map(repr, entries)) or type(batch).__name__}"
        )
    x: NDArray[np.uint8] | None = getattr(pictures, "array", None)
    if x is None or x.shape != (len(labels), _PIXELS):
        raise DataError(
            f"{file} should hold pictures of shape ({len(labels)}, {_PIXELS}), one for each label; "
            f"it holds {'an empty array' if x is None else x.shape}"
        )
    if not all(type(label) is int for label in labels):
        raise DataError(f"{file}: labels {key.encode()!r} must be whole numbers")
    return x.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
