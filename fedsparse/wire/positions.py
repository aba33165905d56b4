"""Kept positions as bytes: bitmap, gaps or compressed bitmap, whichever is smallest.

The first byte names the form:

* 0, bitmap: one bit a position, lowest bit first, unused bits of the last byte 0;
* 1, gaps: the number of positions skipped before each kept one, as LEB128 (7 bits a byte, low bits first);
* 2, compressed bitmap: the bitmap as raw deflate. Masks have runs but hardly repeated phrases, so the
  compressor looks for runs only, which is much faster and as small.

Of forms of equal length the first wins.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import WireError

__all__ = ["pack", "unpack"]

Positions = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_BITMAP, _GAPS, _COMPRESSED = 0, 1, 2
_RAW_DEFLATE = -15
_LONGEST_GAP = 5  # bytes of a gap below 2**31
_ONES = np.array([octet.bit_count() for octet in range(256)], dtype=np.uint8)
_AT_ONCE = 1 << 17  # bytes of a bitmap that are taken apart together


def pack(positions: Positions, size: int) -> bytes:
    """Ascending, distinct positions inside `[0, size)` as bytes: a form byte, then the smallest form."""
    bitmap = _bitmap(positions, size)
    forms = [(_BITMAP, bitmap), (_COMPRESSED, _deflated(bitmap))]
    gaps = np.diff(positions, prepend=-1) - 1
    lengths = _gap_lengths(gaps)
    if int(lengths.sum()) <= min(len(form) for _, form in forms):
        forms.append((_GAPS, _gap_bytes(gaps, lengths)))
    kind, form = min(forms, key=lambda pair: (len(pair[1]), pair[0]))
    return bytes((kind,)) + form


def unpack(blob: bytes | memoryview, size: int, *, most: int) -> Positions:
    """Positions that `pack` was given.

    Memory is bounded by the length of `blob`, by a bitmap of `size` positions, and by `most` of them.

    Raises:
        WireError: the bytes are no such list of positions, or there are more than `most`.
    """
    if len(blob) == 0:
        raise WireError(f"no bytes where positions inside [0, {size}) were expected")
    kind, form = blob[0], blob[1:]
    if kind == _BITMAP:
        return _from_bitmap(form, size, most)
    if kind == _GAPS:
        return _from_gaps(np.frombuffer(form, np.uint8), size, most)
    if kind == _COMPRESSED:
        return _from_bitmap(_inflated(form, (size + 7) // 8), size, most)
    raise WireError(f"unknown form {kind} of positions; expected 0 (bitmap), 1 (gaps) or 2 (compressed bitmap)")


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise WireError(f"there are {count} positions, and there is memory for {most}")


# ---- bitmap
def _bitmap(positions: Positions, size: int) -> bytes:
    mask = np.zeros(size, dtype=np.bool_)
    mask[positions] = True
    return np.packbits(mask, bitorder="little").tobytes()


def _from_bitmap(bitmap: bytes | memoryview, size: int, most: int) -> Positions:
    if len(bitmap) != (size + 7) // 8:
        raise WireError(f"a bitmap of {size} positions has {(size + 7) // 8} bytes, got {len(bitmap)}")
    if size % 8 and bitmap[-1] >> size % 8:
        raise WireError(f"the bitmap sets a bit beyond its {size} positions")
    octets = np.frombuffer(bitmap, np.uint8)
    kept = sum(int(_ONES[part].sum()) for _, part in _parts(octets))
    _check_count(kept, most)
    positions, filled = np.empty(kept, dtype=np.int64), 0
    for start, part in _parts(octets):
        found = np.flatnonzero(np.unpackbits(part, bitorder="little"))
        positions[filled : filled + found.size] = found + 8 * start
        filled += found.size
    return positions


def _parts(octets: Bytes) -> Iterator[tuple[int, Bytes]]:
    for start in range(0, octets.size, _AT_ONCE):
        yield start, octets[start : start + _AT_ONCE]


# ---- compressed bitmap
def _deflated(bitmap: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, _RAW_DEFLATE, strategy=zlib.Z_RLE)
    return compressor.compress(bitmap) + compressor.flush()


def _inflated(data: bytes | memoryview, length: int) -> bytes:
    """Exactly `length` decompressed bytes; never more than one above it are produced."""
    decompressor = zlib.decompressobj(_RAW_DEFLATE)
    try:
        bitmap = decompressor.decompress(data, length + 1)
    except zlib.error as error:
        raise WireError(f"the compressed bitmap is damaged: {error}") from error
    if len(bitmap) != length or not decompressor.eof or decompressor.unused_data:
        raise WireError(f"the compressed bitmap does not expand to exactly {length} bytes")
    return bitmap


# ---- gaps
def _gap_lengths(gaps: Positions) -> NDArray[np.int64]:
    """Bytes of each gap."""
    lengths = np.ones(gaps.size, dtype=np.int64)
    for byte in range(1, _LONGEST_GAP):
        longer = gaps >= 1 << 7 * byte
        if not longer.any():
            break
        lengths += longer
    return lengths


def _gap_bytes(gaps: Positions, lengths: NDArray[np.int64]) -> bytes:
    ends = np.cumsum(lengths)
    encoded = np.zeros(int(ends[-1]) if ends.size else 0, dtype=np.uint8)
    starts = ends - lengths
    for byte in range(int(lengths.max(initial=0))):
        here = np.flatnonzero(lengths > byte)
        more = (lengths[here] > byte + 1).astype(np.uint8) << 7
        encoded[starts[here] + byte] = (gaps[here] >> 7 * byte & 0x7F).astype(np.uint8) | more
    return encoded.tobytes()


def _from_gaps(encoded: Bytes, size: int, most: int) -> Positions:
    if encoded.size and encoded[-1] & 0x80:
        raise WireError("the last gap of the positions is cut off")
    ends = np.flatnonzero(encoded < 0x80)
    _check_count(ends.size, most)
    starts = np.concatenate([[0], ends[:-1] + 1])[: ends.size]
    lengths = ends - starts + 1
    longest = int(lengths.max(initial=0))
    if longest > _LONGEST_GAP:
        raise WireError(f"a gap of {longest} bytes exceeds {_LONGEST_GAP}")
    gaps = np.zeros(ends.size, dtype=np.int64)
    for byte in range(longest):
        here = np.flatnonzero(lengths > byte)
        gaps[here] |= (encoded[starts[here] + byte] & 0x7F).astype(np.int64) << 7 * byte
    # Single gaps are checked before they are added up, so the sums stay far from the end of int64.
    if gaps.max(initial=0) >= max(size, 1) or ends.size > size:
        raise WireError(f"gaps lead beyond the {size} positions")
    positions = np.cumsum(gaps + 1) - 1
    if positions.size and positions[-1] >= size:
        raise WireError(f"gaps lead to position {int(positions[-1])} of {size}")
    return positions
