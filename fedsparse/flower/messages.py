"""What Flower carries for us: one packed array in a message, and a record of scalars beside it."""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsparse.errors import WireError

__all__ = ["STYPE", "Scalar", "content", "notes_of", "packed", "packed_bytes", "unpacked"]

STYPE = "fedsparse/1"
Scalar = str | int | float | bool
_RECORD, _ARRAY, _NOTES = "fedsparse", "message", "fedsparse-notes"


def packed(blob: bytes) -> ArrayRecord:
    """An encoded message as the only array of a record: Flower's cost is by the array."""
    return ArrayRecord({_ARRAY: Array("uint8", (len(blob),), STYPE, blob)})


def unpacked(record: ArrayRecord) -> bytes | None:
    """The encoded message in a record; None for a record of ordinary arrays.

    Raises:
        WireError: a packed array of another version, or not alone in its record.
    """
    kinds = {array.stype for array in record.values()}
    if not any(kind.startswith("fedsparse/") for kind in kinds):
        return None
    if kinds != {STYPE} or len(record) != 1:
        raise WireError(
            f"a record of {len(record)} arrays of the kinds {', '.join(sorted(kinds))}: expected one of {STYPE}; use "
            "the same version of fedsparse on all hosts"
        )
    return bytes(next(iter(record.values())).data)


def content(blob: bytes | None, notes: Mapping[str, Scalar]) -> RecordDict:
    """The content of one of the engine's messages; without a blob, the notes alone."""
    records = {} if blob is None else {_RECORD: packed(blob)}
    return RecordDict({**records, _NOTES: ConfigRecord(dict(notes))})


def packed_bytes(message: Message) -> bytes:
    """The encoded message that a Flower message carries.

    Raises:
        WireError: it carries none.
    """
    record = message.content.array_records.get(_RECORD)
    blob = None if record is None else unpacked(record)
    if blob is None:
        raise WireError(f"a Flower message of type {message.metadata.message_type!r} carries no array of {STYPE}")
    return blob


def notes_of(message: Message) -> ConfigRecord:
    """The scalars beside the array.

    Raises:
        WireError: there are none.
    """
    notes = message.content.config_records.get(_NOTES)
    if notes is None:
        raise WireError(f"a Flower message of type {message.metadata.message_type!r} is none of fedsparse's engine")
    return notes
