"""Numbers, texts and raw bytes written to and read from one buffer, every length checked before use."""

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from fedsparse.errors import WireError
from fedsparse.pattern import Topology

__all__ = ["Reader", "Writer"]

_DEEPEST = 16
_INTEGER = struct.Struct("<q")
_REAL = struct.Struct("<d")
_LONGEST_COUNT = 9  # bytes of a count below 2**63


class _Place:
    """Where in a message one is, by the names on the way down."""

    def __init__(self) -> None:
        self._names: list[str] = []

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Work on the part called `name`."""
        if len(self._names) == _DEEPEST:
            raise self.error(f"sections are nested more than {_DEEPEST} deep")
        self._names.append(name)
        yield  # no `finally`: after an error the names still say where it happened
        self._names.pop()

    def error(self, message: str) -> WireError:
        """WireError that says where."""
        return WireError(f"{'/'.join(self._names) or 'message'}: {message}")


class Writer(_Place):
    """Collects the parts of a message.

    Attributes:
        known: digests of the topologies that the receiver holds.
        parts: what was written, in order.
    """

    def __init__(self, known: Collection[str]) -> None:
        super().__init__()
        self.known = known
        self.parts: list[bytes | memoryview] = []

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes whose number the reader knows."""
        self.parts.append(data)

    def byte(self, value: int) -> None:
        """A number in [0, 256)."""
        self.parts.append(bytes((value,)))

    def count(self, value: int) -> None:
        """A number that is not negative, as LEB128."""
        encoded = bytearray()
        while value >= 0x80:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7
        encoded.append(value)
        self.parts.append(bytes(encoded))

    def integer(self, value: int) -> None:
        """A number that fits 64 bits with sign."""
        if not -(1 << 63) <= value < 1 << 63:
            raise self.error(f"the integer {value} does not fit 64 bits")
        self.parts.append(_INTEGER.pack(value))

    def real(self, value: float) -> None:
        """A 64-bit float."""
        self.parts.append(_REAL.pack(value))

    def block(self, data: bytes | memoryview) -> None:
        """Bytes, preceded by their number."""
        self.count(len(data))
        self.raw(data)

    def text(self, value: str) -> None:
        """A text as UTF-8, preceded by its number of bytes."""
        try:
            self.block(value.encode())
        except UnicodeEncodeError as error:
            raise self.error(f"the text {value!r} is not valid Unicode") from error


class Reader(_Place):
    """Takes a message apart; every read checks first that the bytes are there.

    Attributes:
        topologies: topologies held here, by digest.
        bytes_left: of memory that positions may still take.
    """

    def __init__(self, body: memoryview, topologies: Mapping[str, Topology], most_bytes: int) -> None:
        super().__init__()
        self.topologies = topologies
        self._body = body
        self._next = 0
        self._most_bytes = self.bytes_left = most_bytes

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._body) - self._next

    def raw(self, length: int) -> memoryview:
        """The next `length` bytes."""
        if length > self.left:
            raise self.error(f"{length} bytes are announced, but {self.left} are left")
        start, self._next = self._next, self._next + length
        return self._body[start : self._next]

    def byte(self) -> int:
        """A number in [0, 256)."""
        return self.raw(1)[0]

    def count(self, limit: int) -> int:
        """A number in [0, limit]."""
        value = 0
        for place in range(_LONGEST_COUNT):
            part = self.byte()
            value |= (part & 0x7F) << 7 * place
            if part < 0x80:
                break
        else:
            raise self.error(f"a count has more than {_LONGEST_COUNT} bytes")
        if value > limit:
            raise self.error(f"a count of {value} exceeds its limit {limit}")
        return value

    def integer(self) -> int:
        """A number of 64 bits with sign."""
        return int(_INTEGER.unpack(self.raw(_INTEGER.size))[0])

    def real(self) -> float:
        """A 64-bit float."""
        return float(_REAL.unpack(self.raw(_REAL.size))[0])

    def block(self) -> memoryview:
        """Bytes, preceded by their number."""
        return self.raw(self.count(self.left))

    def spend(self, memory: int) -> None:
        """Counts memory that positions take before it is taken: a few bytes may stand for very many of them."""
        if memory > self.bytes_left:
            raise self.error(
                f"the positions in one message may take {self._most_bytes} bytes of memory, these take more"
            )
        self.bytes_left -= memory

    def text(self) -> str:
        """A text as UTF-8."""
        try:
            return str(self.block(), "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a text is not UTF-8: {error}") from error
