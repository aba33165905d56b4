"""What a node says beside its array, judged before it is believed.

Whoever reaches the SuperLink may say anything. A text becomes part of a file's name, a number is summed up and written
as JSON, a share decides who is asked for whose clients: each has one type and one range, and nothing else passes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsparse.errors import WireError
from fedsparse.measure import Reading

__all__ = ["Keeps", "Served", "Share", "plain"]

_TOKEN, _DIGEST = re.compile(r"([0-9a-f]{24})?"), re.compile(r"([0-9a-f]{32})?")
_LONGEST_REASON = 2000  # characters that go on record
_LARGEST = {"seconds": 1e9, "peak": 2.0**60}  # sums over all clients and rounds stay finite and exact
_MOST_PARTITIONS = 2**31 - 1


@dataclass(frozen=True)
class Keeps:
    """What the server knows of what a client keeps: its token, the topology it holds, whether it has a memory."""

    token: str
    held: str
    remembers: bool


@dataclass(frozen=True)
class Served:
    """What comes with a client's answer.

    Attributes:
        keeps: what the client keeps from now on.
        reason: why it failed; empty otherwise.
        seconds, peak: of its work.
    """

    keeps: Keeps
    reason: str
    seconds: Reading
    peak: Reading

    @classmethod
    def read(cls, notes: Mapping[str, Any]) -> "Served":
        """From the notes of an answer.

        Raises:
            WireError: one is missing, of another type, or out of range.
        """
        keeps = Keeps(_text(notes, "token", _TOKEN), _text(notes, "held", _DIGEST), _of(notes, "remembers", bool))
        return cls(
            keeps, plain(_of(notes, "reason", str)), _reading(notes, "seconds", "s"), _reading(notes, "peak", "B")
        )


@dataclass(frozen=True)
class Share:
    """Which clients a node serves: those whose id leaves `partition` when divided by `partitions`."""

    partition: int
    partitions: int

    @classmethod
    def read(cls, notes: Mapping[str, Any]) -> "Share":
        """From the notes of a greeting.

        Raises:
            WireError: a number is missing, is none, or there is no such share.
        """
        partition, partitions = _of(notes, "partition", int), _of(notes, "partitions", int)
        if not 0 <= partition < partitions <= _MOST_PARTITIONS:
            raise WireError(
                f"the node says that it is partition {partition} of {partitions}: expected one from 0 to below their "
                'number; start it with --node-config "partition-id=0 num-partitions=2"'
            )
        return cls(partition, partitions)


def plain(text: str) -> str:
    """What a node says in words, fit for a terminal and a line of a file."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST_REASON])


def _of(notes: Mapping[str, Any], name: str, kind: type) -> Any:
    """The note of that name, of exactly that type: a bool is no int."""
    if name not in notes:
        raise WireError(f"the node's answer lacks {name!r}; use the same version of fedsparse on all hosts")
    value = notes[name]
    if type(value) is not kind:
        raise _wrong(name, value, f"a value of type {kind.__name__}")
    return value


def _text(notes: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value: str = _of(notes, name, str)
    if pattern.fullmatch(value) is None:
        raise _wrong(name, value, f"nothing or {pattern.pattern[1:-2]}")
    return value


def _reading(notes: Mapping[str, Any], name: str, unit: str) -> Reading:
    source, value = notes.get(f"{name}-source", "unavailable"), notes.get(name)
    if source == "unavailable" and value is None:
        return Reading(None, unit, "unavailable")
    if source not in ("measured", "modelled"):
        raise _wrong(f"{name}-source", source, "measured or modelled, or unavailable where there is no number")
    if type(value) is not float or not math.isfinite(value) or not 0 <= value <= _LARGEST[name]:
        raise _wrong(name, value, f"a number from 0 to {_LARGEST[name]:g}")
    return Reading(value, unit, source)


def _wrong(name: str, value: object, expected: str) -> WireError:
    return WireError(f"the node's answer says {name} = {plain(repr(value)[:100])}: expected {expected}")
