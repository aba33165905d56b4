"""Messages to bytes and back.

One buffer: a header of 18 bytes (magic `FSPW`, format version, length of the body, CRC-32 of the body), then
the body. All numbers are little-endian. The checksum catches damage, not intent; content is checked as it is
read, so any bytes whatever either decode or raise WireError.
"""

import struct
import zlib
from collections.abc import Collection, Mapping

from fedsparse.errors import WireError
from fedsparse.pattern import Topology
from fedsparse.wire.buffer import Reader, Writer
from fedsparse.wire.payload import Payload
from fedsparse.wire.sections import read_mapping, read_weights, write_mapping, write_weights

__all__ = ["FORMAT_VERSION", "MOST_BYTES", "decode", "encode"]

FORMAT_VERSION = 1
MOST_BYTES = 1 << 32  # 500 million positions

_MAGIC = b"FSPW"
_HEADER = struct.Struct("<4sHQI")


def encode(message: Payload, *, known: Collection[str] = ()) -> bytes:
    """The message as one buffer.

    Args:
        known: digests of topologies that the receiver holds; these are sent as a reference of 16 bytes.

    Raises:
        WireError: the message holds something that cannot be sent; the error names the section.
    """
    writer = Writer(known)
    writer.text(message.task)
    writer.integer(message.round)
    writer.byte(0 if message.weights is None else 1)
    if message.weights is not None:
        with writer.inside("weights"):
            write_weights(writer, message.weights)
    with writer.inside("extras"):
        write_mapping(writer, message.extras)
    checksum = length = 0
    for part in writer.parts:
        checksum = zlib.crc32(part, checksum)
        length += len(part)
    return b"".join([_HEADER.pack(_MAGIC, FORMAT_VERSION, length, checksum), *writer.parts])


def decode(
    blob: bytes | bytearray | memoryview,
    *,
    topologies: Mapping[str, Topology] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Payload:
    """The message that `encode` was given. Tensors are on the CPU and own their memory.

    Numbers are not judged: NaN and infinity pass.

    Args:
        topologies: topologies held here, by digest, for those that come as a reference.
        most_bytes: of memory that positions of masks, gradients and signs may take. All else is bounded by the
            length of the message, but a compressed bitmap may stand for 8000 times its length; so whoever decodes
            what strangers sent says how much their model can need.

    Raises:
        WireError: the buffer is damaged, truncated, too long, of another format version, needs more memory, or
            refers to a topology that is not in `topologies`.
    """
    view = memoryview(blob)
    flat = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    reader = Reader(_body(flat), topologies or {}, most_bytes)
    try:
        message = _read_message(reader)
    except WireError:
        raise
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise reader.error(str(error)) from error
    if reader.left:
        raise WireError(f"{reader.left} bytes follow the end of the message")
    return message


def _body(view: memoryview) -> memoryview:
    """Body of a buffer whose header and checksum hold."""
    if len(view) < _HEADER.size:
        raise WireError(f"a message has at least {_HEADER.size} bytes, got {len(view)}")
    magic, version, length, checksum = _HEADER.unpack(view[: _HEADER.size])
    if magic != _MAGIC:
        raise WireError(f"not a fedsparse message: it starts with {magic!r} instead of {_MAGIC!r}")
    if version != FORMAT_VERSION:
        raise WireError(
            f"message of format version {version}, but this fedsparse reads version {FORMAT_VERSION}; "
            f"use the same version on all hosts"
        )
    body = view[_HEADER.size :]
    if len(body) != length:
        raise WireError(f"the header announces a body of {length} bytes, got {len(body)}")
    if zlib.crc32(body) != checksum:
        raise WireError("the checksum does not match: the message was damaged on its way")
    return body


def _read_message(reader: Reader) -> Payload:
    task, round = reader.text(), reader.integer()
    has_weights = reader.byte()
    if has_weights > 1:
        raise reader.error(f"weights are absent (0) or present (1), got {has_weights}")
    weights = None
    if has_weights:
        with reader.inside("weights"):
            weights = read_weights(reader)
    with reader.inside("extras"):
        extras = read_mapping(reader)
    return Payload(task, round, weights, extras)
