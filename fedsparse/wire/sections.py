"""How each type of section is written and read. A section starts with one byte that names its type."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsparse.pattern import Pattern, Topology, Weights, parse
from fedsparse.wire.buffer import Reader, Writer
from fedsparse.wire.payload import IndexSet, Quantized, Section, SignMap, SparseVector
from fedsparse.wire.positions import pack, unpack
from fedsparse.wire.tensors import (
    read_dtype,
    read_entries,
    read_tensor,
    tensor_bytes,
    write_dtype,
    write_tensor,
)

__all__ = ["read_mapping", "read_section", "read_weights", "write_mapping", "write_section", "write_weights"]

_MOST_AXES = 16
_LARGEST_SIZE = (1 << 31) - 1  # positions of one array: they are 32-bit numbers everywhere


# ---- positions
def _write_positions(writer: Writer, positions: Tensor, size: int) -> None:
    writer.block(pack(positions.cpu().numpy(), size))


def _read_positions(reader: Reader, size: int) -> Tensor:
    reader.spend(size // 8)  # of a bitmap
    positions = unpack(reader.block(), size, most=reader.bytes_left // 8)
    reader.spend(positions.nbytes)
    return torch.from_numpy(positions)


def _write_index_set(writer: Writer, section: IndexSet) -> None:
    writer.count(section.size)
    _write_positions(writer, section.indices, section.size)


def _read_index_set(reader: Reader) -> IndexSet:
    size = reader.count(_LARGEST_SIZE)
    return IndexSet(size, _read_positions(reader, size))


def _write_sparse_vector(writer: Writer, section: SparseVector) -> None:
    _write_index_set(writer, section)
    writer.raw(tensor_bytes(section.values))


def _read_sparse_vector(reader: Reader) -> SparseVector:
    found = _read_index_set(reader)
    values = read_entries(reader, tuple(found.indices.shape), torch.float32)
    return SparseVector(found.size, found.indices, values)


def _write_sign_map(writer: Writer, section: SignMap) -> None:
    """Positions, then one bit each, lowest first: 1 is negative. Below 2 bits an entry however many have a sign."""
    _write_index_set(writer, section)
    writer.raw(np.packbits((section.signs < 0).cpu().numpy(), bitorder="little").tobytes())


def _read_sign_map(reader: Reader) -> SignMap:
    found = _read_index_set(reader)
    count = found.indices.numel()
    packed = reader.raw((count + 7) // 8)
    if count % 8 and packed[-1] >> count % 8:
        raise reader.error(f"the signs set a bit beyond their {count} positions")
    negative = torch.from_numpy(np.unpackbits(np.frombuffer(packed, np.uint8), count=count, bitorder="little"))
    return SignMap(found.size, found.indices, 1 - 2 * negative.to(torch.int8))


# ---- grids
def _write_quantized(writer: Writer, section: Quantized) -> None:
    writer.real(section.scale)
    write_tensor(writer, section.codes)


def _read_quantized(reader: Reader) -> Quantized:
    scale = reader.real()
    return Quantized(read_tensor(reader), scale)


# ---- topologies
def _write_topology(writer: Writer, topology: Topology) -> None:
    """Digest, whether the patterns follow, and the patterns unless the receiver has them."""
    writer.raw(bytes.fromhex(topology.digest))
    known = topology.digest in writer.known
    writer.byte(0 if known else 1)
    if known:
        return
    writer.count(len(topology))
    for name, pattern in topology.items():
        with writer.inside(name):
            _write_pattern(writer, name, pattern)


def _write_pattern(writer: Writer, name: str, pattern: Pattern) -> None:
    writer.text(name)
    writer.text(str(pattern.granularity))
    writer.byte(len(pattern.shape))
    for extent in pattern.shape:
        writer.count(extent)
    _write_positions(writer, pattern.flat, pattern.size)


def _read_topology(reader: Reader) -> Topology:
    digest = reader.raw(16).hex()
    complete = reader.byte()
    if complete > 1:
        raise reader.error(f"a topology is a reference (0) or complete (1), got {complete}")
    if not complete:
        if digest not in reader.topologies:
            raise reader.error(f"topology {digest} is sent by reference but not held here; ask for it in full")
        return reader.topologies[digest]
    topology = _read_patterns(reader)
    if topology.digest != digest:
        raise reader.error(f"topology {digest} was announced, but its patterns have digest {topology.digest}")
    return topology


def _read_patterns(reader: Reader) -> Topology:
    patterns: dict[str, Pattern] = {}
    for _ in range(reader.count(reader.left)):
        name = _new_name(reader, patterns)
        if "\n" in name:  # a digest is over lines of names: with it, other masks could pass for those of a digest
            raise reader.error(f"a weight cannot be called {name!r}")
        with reader.inside(name):
            granularity = parse(reader.text())
            shape = _read_shape(reader)
            reader.spend(8 * (shape[0] + shape[1]))  # kept weights or not
            patterns[name] = Pattern.from_flat(shape, _read_positions(reader, math.prod(shape)), granularity)
    return Topology(patterns)


def _read_shape(reader: Reader) -> tuple[int, ...]:
    axes = reader.byte()
    if not 2 <= axes <= _MOST_AXES:
        raise reader.error(f"a pruned weight has 2 to {_MOST_AXES} axes, got {axes}")
    shape = tuple(reader.count(_LARGEST_SIZE) for _ in range(axes))
    if not 1 <= math.prod(shape) <= _LARGEST_SIZE:
        raise reader.error(f"a pruned weight of shape {shape} must have 1 to {_LARGEST_SIZE} positions")
    return shape


# ---- weights
def write_weights(writer: Writer, weights: Weights) -> None:
    """Topology, then values in its order, then the dense tensors."""
    _write_topology(writer, weights.topology)
    for name in weights.topology:
        with writer.inside(name):
            write_dtype(writer, weights.values[name])
            writer.raw(tensor_bytes(weights.values[name]))
    writer.count(len(weights.dense))
    for name, tensor in weights.dense.items():
        with writer.inside(name):
            writer.text(name)
            write_tensor(writer, tensor)


def read_weights(reader: Reader) -> Weights:
    """Weights as `write_weights` left them."""
    topology = _read_topology(reader)
    values = {name: read_entries(reader, (p.nnz,), read_dtype(reader)) for name, p in topology.items()}
    dense: dict[str, Tensor] = {}
    for _ in range(reader.count(reader.left)):
        name = _new_name(reader, dense)
        with reader.inside(name):
            dense[name] = read_tensor(reader)
    return Weights(topology, values, dense)


# ---- mappings
def write_mapping(writer: Writer, sections: Mapping[str, Section]) -> None:
    """Number of sections, then name and section each."""
    writer.count(len(sections))
    for name, section in sections.items():
        with writer.inside(name):
            writer.text(name)
            write_section(writer, section)


def read_mapping(reader: Reader) -> dict[str, Section]:
    """Sections by name, in the order of writing."""
    sections: dict[str, Section] = {}
    for _ in range(reader.count(reader.left)):
        name = _new_name(reader, sections)
        with reader.inside(name):
            sections[name] = read_section(reader)
    return sections


def _new_name(reader: Reader, taken: Mapping[str, object]) -> str:
    name = reader.text()
    if name in taken:
        raise reader.error(f"the name {name!r} appears twice")
    return name


def _write_bool(writer: Writer, value: bool) -> None:
    writer.byte(int(value))


def _read_bool(reader: Reader) -> bool:
    value = reader.byte()
    if value > 1:
        raise reader.error(f"a truth value is 0 or 1, got {value}")
    return bool(value)


# ---- choice by type
@dataclass(frozen=True)
class _Kind:
    tag: int
    type: type
    write: Callable[[Writer, Any], None]
    read: Callable[[Reader], Section]


# The first type that fits is taken: bool before int, IndexSet after what derives from it, Topology before Mapping.
_KINDS = (
    _Kind(1, Tensor, write_tensor, read_tensor),
    _Kind(2, Topology, _write_topology, _read_topology),
    _Kind(3, Weights, write_weights, read_weights),
    _Kind(4, SparseVector, _write_sparse_vector, _read_sparse_vector),
    _Kind(11, SignMap, _write_sign_map, _read_sign_map),
    _Kind(5, IndexSet, _write_index_set, _read_index_set),
    _Kind(12, Quantized, _write_quantized, _read_quantized),
    _Kind(6, bool, _write_bool, _read_bool),
    _Kind(7, int, Writer.integer, Reader.integer),
    _Kind(8, float, Writer.real, Reader.real),
    _Kind(9, str, Writer.text, Reader.text),
    _Kind(10, Mapping, write_mapping, read_mapping),
)
_BY_TAG = {kind.tag: kind for kind in _KINDS}


def write_section(writer: Writer, section: Section) -> None:
    """Type byte and content of a section."""
    kind = next((kind for kind in _KINDS if isinstance(section, kind.type)), None)
    if kind is None:
        names = ", ".join(kind.type.__name__ for kind in _KINDS)
        raise writer.error(f"a {type(section).__name__} cannot be sent; expected one of {names}")
    writer.byte(kind.tag)
    kind.write(writer, section)


def read_section(reader: Reader) -> Section:
    """The next section, of whatever type."""
    tag = reader.byte()
    if tag not in _BY_TAG:
        raise reader.error(f"unknown section type {tag}")
    return _BY_TAG[tag].read(reader)
