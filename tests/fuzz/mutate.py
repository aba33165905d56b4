"""Damage: of bytes, of lines of text, and of what a message means."""

import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedsparse import wire
from fedsparse.errors import FedsparseError
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import IndexSet, Payload, Quantized, SignMap, SparseVector

__all__ = ["choice", "damaged", "encoded", "resealed", "reworded", "sealed_damage", "twisted"]

HEADER = struct.Struct("<4sHQI")
ODD_BYTES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 0x7F, 0x80, 0x81, 0xFE, 0xFF)
ODD_COUNTS = (0, 1, 127, 128, 2**15, 2**16, 2**24, 2**26, 2**30, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
ODD_NUMBERS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 2.0**31)


def choice(rng, options: Sequence):
    return options[int(rng.integers(len(options)))]


# ---- bytes
def _flip(blob: bytearray, rng, _) -> None:
    blob[int(rng.integers(len(blob)))] ^= 1 << int(rng.integers(8))


def _odd_byte(blob: bytearray, rng, _) -> None:
    blob[int(rng.integers(len(blob)))] = choice(rng, ODD_BYTES)


def _odd_count(blob: bytearray, rng, _) -> None:
    value, encoded = choice(rng, ODD_COUNTS), bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    place = int(rng.integers(len(blob)))
    blob[place : place + int(rng.integers(0, 3))] = bytes([*encoded, value])


def _odd_word(blob: bytearray, rng, _) -> None:
    form = choice(rng, ("<I", ">I", "<Q", ">Q", "<H"))
    word = struct.pack(form, choice(rng, ODD_COUNTS) % (1 << 8 * struct.calcsize(form)))
    place = int(rng.integers(len(blob)))
    blob[place : place + len(word)] = word


def _odd_real(blob: bytearray, rng, _) -> None:
    place = int(rng.integers(len(blob)))
    blob[place : place + 8] = struct.pack("<d", choice(rng, ODD_NUMBERS))


def _piece(length: int, rng) -> slice:
    start = int(rng.integers(length))
    return slice(start, start + int(rng.integers(1, 1 + min(64, length))))


def _cut(blob: bytearray, rng, _) -> None:
    del blob[int(rng.integers(len(blob))) :]


def _drop(blob: bytearray, rng, _) -> None:
    del blob[_piece(len(blob), rng)]


def _repeat(blob: bytearray, rng, _) -> None:
    piece = _piece(len(blob), rng)
    blob[piece.stop : piece.stop] = blob[piece]


def _splice(blob: bytearray, rng, other: bytes) -> None:
    if other:
        blob[_piece(len(blob), rng)] = other[_piece(len(other), rng)]


def _cross(blob: bytearray, rng, other: bytes) -> None:
    blob[int(rng.integers(len(blob))) :] = other[int(rng.integers(len(other) + 1)) :]


BYTE_DAMAGE = (
    _flip,
    _flip,
    _odd_byte,
    _odd_byte,
    _odd_count,
    _odd_word,
    _odd_real,
    _cut,
    _drop,
    _repeat,
    _splice,
    _cross,
)


def damaged(blob: bytes, rng, other: bytes) -> bytes:
    """One to four kinds of damage, one after another; `other` lends pieces."""
    changed = bytearray(blob)
    for _ in range(int(rng.integers(1, 5))):
        if changed:
            choice(rng, BYTE_DAMAGE)(changed, rng, other)
    return bytes(changed)


def resealed(body: bytes) -> bytes:
    """A message whose header and checksum fit its body."""
    return HEADER.pack(b"FSPW", 1, len(body), zlib.crc32(body)) + body


def sealed_damage(blob: bytes, rng, other: bytes) -> bytes:
    """A damaged message; of ten, nine get past the checksum."""
    if rng.random() < 0.1:
        return damaged(blob, rng, other)
    return resealed(damaged(blob[HEADER.size :], rng, other[HEADER.size :]))


# ---- meaning
def _tensor(rng) -> torch.Tensor:
    dtype = choice(rng, (torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.int8, torch.bool))
    shape = choice(rng, ((), (0,), (1,), (2,), (3, 2), (10,), (4, 0)))
    return (torch.from_numpy(rng.standard_normal(shape)) * choice(rng, (0, 1, -3, 100))).to(dtype)


def _positions(rng, size: int) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(rng.random(size) < choice(rng, (0.0, 0.1, 1.0))))


def _odd_section(rng, depth: int = 0):
    size = int(rng.integers(0, 80))
    kept = _positions(rng, size)
    makers: list[Callable[[], object]] = [
        lambda: _tensor(rng),
        lambda: int(choice(rng, (-(2**63), -1, 0, 1, 2**31, 2**63 - 1))),
        lambda: float(choice(rng, ODD_NUMBERS)),
        lambda: choice(rng, ("", "a", "weights", "\n", "x" * 300)),
        lambda: bool(rng.integers(2)),
        lambda: IndexSet(size, kept),
        lambda: SparseVector(size, kept, torch.full(kept.shape, choice(rng, ODD_NUMBERS), dtype=torch.float64).float()),
        lambda: SignMap(size, kept, torch.ones(kept.shape, dtype=torch.int8)),
        lambda: Quantized(torch.ones(size, dtype=torch.int8), abs(float(choice(rng, (0.0, 1.0, 1e30))))),
        lambda: Topology.from_masks({"a.weight": torch.from_numpy(rng.random((4, 5)) < 0.5)}),
        lambda: Topology(),
        lambda: {} if depth > 2 else {choice(rng, ("a", "b", "")): _odd_section(rng, depth + 1)},
    ]
    return choice(rng, makers)()


def _twisted_tensor(tensor: torch.Tensor, rng) -> torch.Tensor:
    changed = tensor.clone()
    if changed.numel() == 0 or rng.random() < 0.3:
        return choice(rng, (changed.reshape(-1), changed[None], changed.double(), changed.new_empty(0), _tensor(rng)))
    flat = changed.view(-1)
    number = torch.tensor(choice(rng, ODD_NUMBERS), dtype=torch.float64)
    place = int(rng.integers(flat.numel()))
    flat[place] = number if changed.is_floating_point() else int(choice(rng, (-(2**31), -1, 0, 1, 127))) % 128
    return changed


def _twisted_section(section, rng):
    if rng.random() < 0.35:
        return _odd_section(rng)
    if isinstance(section, torch.Tensor):
        return _twisted_tensor(section, rng)
    if isinstance(section, SparseVector) and section.indices.numel():
        if rng.random() < 0.5:
            return replace(section, values=_filled(section.values, rng))
        return SparseVector(section.size, section.indices[1:], section.values[1:])
    if isinstance(section, IndexSet):
        return IndexSet(section.size + int(rng.integers(1, 3)), section.indices)
    if isinstance(section, Weights):
        return _twisted_weights(section, rng)
    if isinstance(section, Mapping) and not isinstance(section, Topology):
        return _twisted_mapping(section, rng)
    return _odd_section(rng)


def _filled(values: torch.Tensor, rng) -> torch.Tensor:
    changed = values.clone()
    changed[int(rng.integers(len(changed)))] = torch.tensor(choice(rng, ODD_NUMBERS), dtype=torch.float64)
    return changed


def _twisted_mapping(sections: Mapping, rng) -> dict:
    changed = dict(sections)
    name = choice(rng, [*changed, "more"])
    if name not in changed or rng.random() < 0.1:
        changed[f"{name}x"] = _odd_section(rng)
    elif rng.random() < 0.2:
        del changed[name]
    elif rng.random() < 0.1:
        changed = dict(reversed(changed.items()))
    else:
        changed[name] = _twisted_section(changed[name], rng)
    return changed


def _twisted_weights(weights: Weights, rng) -> Weights:
    topology, values, dense = weights.topology, dict(weights.values), dict(weights.dense)
    kind = int(rng.integers(4))
    if kind == 0 and values:
        name = choice(rng, list(values))
        values[name] = _filled(values[name], rng) if values[name].numel() else values[name]
    elif kind == 1 and dense:
        name = choice(rng, list(dense))
        dense[name] = _twisted_tensor(dense[name], rng)
    elif kind == 2 and topology:
        name = choice(rng, list(topology))
        masks = {key: pattern.mask() for key, pattern in topology.items()}
        masks[name].view(-1)[int(rng.integers(masks[name].numel()))] ^= True
        return weights.moved_to(Topology.from_masks(masks))
    elif dense:
        del dense[choice(rng, list(dense))]
    return Weights(topology, values, dense)


def twisted(message: Payload, rng) -> Payload:
    """A whole message that says something else."""
    for _ in range(int(rng.integers(1, 3))):
        kind = rng.random()
        if message.weights is not None and kind < 0.4:
            message = replace(message, weights=_twisted_weights(message.weights, rng))
        elif kind < 0.9:
            message = replace(message, extras=_twisted_mapping(message.extras, rng))
        elif kind < 0.95:
            message = replace(message, weights=None)
        else:
            message = replace(message, task=choice(rng, ("", "train", "evaluate", "aggregate", "__init__")))
    return message


# ---- text
ODD_VALUES = (
    "0", "-1", "1", "2", "1e308", "nan", "inf", "-inf", "0.1", "true", "false", '""', '"a"', "[]", "[1]",
    '["a"]', "{}",
    "{a = 1}", "9223372036854775807", "1979-05-27", '"/dev/null"', '"../x"', "[[1]]", '"fedtiny"', '"cuda"',
    "1000000000",
)  # fmt: skip


def reworded(text: str, rng, other: str) -> str:
    """Lines of a configuration with other values, lost, doubled, exchanged, from another file, or damaged."""
    lines = text.splitlines()
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(lines))) if lines else 0
        kind = rng.random()
        if not lines:
            lines = ["a = 1"]
        elif kind < 0.5 and "=" in lines[place]:
            lines[place] = f"{lines[place].split('=')[0]}= {choice(rng, ODD_VALUES)}"
        elif kind < 0.6:
            del lines[place]
        elif kind < 0.7:
            lines.insert(int(rng.integers(len(lines) + 1)), lines[place])
        elif kind < 0.85:
            lines.insert(place, choice(rng, other.splitlines() or [""]))
        else:
            raw = damaged(lines[place].encode() or b"x", rng, other.encode())
            lines[place] = raw.decode("utf-8", errors="replace")
    return "\n".join(lines) + "\n"


def encoded(message: Payload, known) -> bytes | None:
    """A twisted message as bytes; None where nobody could send it."""
    try:
        return wire.encode(message, known=known)
    except (FedsparseError, ValueError, RuntimeError):
        return None
