import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import WireError
from fedsparse.wire import positions as codec
from fedsparse.wire.positions import pack

BITMAP, GAPS, COMPRESSED = 0, 1, 2


def positions(*values):
    return np.array(values, dtype=np.int64)


def unpack(blob, size):
    return codec.unpack(blob, size, most=1 << 31)


def random_positions(size, count, seed=0):
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False))


@settings(deadline=None)
@given(
    st.integers(0, 3000).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(n - 1, 0)), max_size=n)))
)
def test_round_trip(case):
    size, kept = case
    found = unpack(pack(positions(*sorted(kept)), size), size)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(kept)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_round_trip_of_large_masks_and_never_above_the_bitmap(share):
    size = 300_007
    kept = random_positions(size, int(share * size))
    blob = pack(kept, size)
    assert len(blob) <= 1 + (size + 7) // 8
    assert np.array_equal(unpack(blob, size), kept)


def test_bitmap_written_by_hand():
    # 0, 2, 3 and 9 of 10: bits 00001101 and 00000010
    kept = positions(0, 2, 3, 9)
    assert pack(kept, 10) == bytes([BITMAP, 0b00001101, 0b10])
    assert unpack(bytes([BITMAP, 0b00001101, 0b10]), 10).tolist() == [0, 2, 3, 9]


def test_bitmap_size_is_one_bit_a_position():
    # 200 of 1000: 125 bytes, and with 4 bytes a value the 925 bytes of the closed form
    blob = pack(random_positions(1000, 500), 1000)
    assert blob[0] == BITMAP
    assert len(blob) == 1 + 125


def test_gaps_written_by_hand():
    # skipped before each: 5, 0, 127, 128, 16384 -> the last two take 2 and 3 bytes, low 7 bits first
    kept = positions(5, 6, 134, 263, 16648)
    assert pack(kept, 1_000_000) == bytes([GAPS, 5, 0, 127, 0x80, 0x01, 0x80, 0x80, 0x01])
    assert unpack(pack(kept, 1_000_000), 1_000_000).tolist() == kept.tolist()


def test_gaps_reach_the_largest_size():
    size = (1 << 31) - 1
    blob = bytes([GAPS, 0xFE, 0xFF, 0xFF, 0xFF, 0x07])
    assert unpack(blob, size).tolist() == [size - 1]
    with pytest.raises(WireError, match="beyond"):
        unpack(bytes([GAPS, 0xFF, 0xFF, 0xFF, 0xFF, 0x07]), size)


def test_runs_compress():
    kept = np.concatenate([np.arange(100, 9000), np.arange(30_000, 31_000)])
    blob = pack(kept, 40_000)
    assert blob[0] == COMPRESSED
    assert len(blob) < 200
    assert np.array_equal(unpack(blob, 40_000), kept)


def test_nothing_kept_and_nothing_there_take_one_byte():
    assert pack(positions(), 10_000) == bytes([GAPS])
    assert unpack(bytes([GAPS]), 10_000).size == 0
    assert unpack(pack(positions(), 0), 0).size == 0


def deflated(data):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("blob", "size", "message"),
    [
        (b"", 8, "no bytes"),
        (b"\x03\x00", 8, "unknown form 3"),
        (b"\x00\xff", 9, "has 2 bytes, got 1"),
        (b"\x00\xff\x01\x00", 9, "has 2 bytes, got 3"),
        (b"\x00\xff\x02", 9, "beyond its 9 positions"),
        (b"\x01\x80", 9, "cut off"),
        (b"\x01\x09", 9, "beyond"),
        (b"\x01\x00\x08", 9, "position 9 of 9"),
        (b"\x01\x00", 0, "beyond"),
        (b"\x01" + b"\x80" * 5 + b"\x01", 9, "a gap of 6 bytes"),
        (b"\x02\xff\xff", 9, "damaged"),
        (b"\x02" + deflated(b"\xff"), 9, "exactly 2 bytes"),
        (b"\x02" + deflated(bytes(3)), 9, "exactly 2 bytes"),
        (b"\x02" + deflated(bytes(2)) + b"x", 9, "exactly 2 bytes"),
        (b"\x02" + deflated(bytes(2))[:-1], 9, "exactly 2 bytes"),
        (b"\x02" + deflated(b"\xff\x02"), 9, "beyond its 9 positions"),
        (b"\x02" + deflated(b"x"), 0, "exactly 0 bytes"),
    ],
)
def test_damaged_lists_are_refused(blob, size, message):
    with pytest.raises(WireError, match=message):
        unpack(blob, size)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_bytes_are_valid_positions_or_refused(blob, size):
    try:
        found = unpack(blob, size)
    except WireError:
        return
    assert found.size == 0 or (found[0] >= 0 and found[-1] < size)
    assert np.all(np.diff(found) > 0)


def test_a_small_blob_cannot_expand_beyond_its_declared_size():
    bomb = b"\x02" + deflated(bytes(50_000_000))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="exactly 125 bytes"):
            unpack(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [BITMAP, COMPRESSED, GAPS])
def test_more_positions_than_there_is_memory_for_are_never_made(form):
    size = 1 << 26
    bitmap = b"\xff" * (size // 8)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    blob = {
        BITMAP: lambda: bytes([BITMAP]) + bitmap,
        COMPRESSED: lambda: bytes([COMPRESSED]) + compressor.compress(bitmap) + compressor.flush(),
        GAPS: lambda: bytes([GAPS]) + bytes(1001),
    }[form]()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"there is memory for 1000$"):
            codec.unpack(blob, size, most=1000)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(bitmap)  # all of them would take 64 times as much
    finally:
        tracemalloc.stop()
    assert codec.unpack(bytes([GAPS]) + bytes(1000), size, most=1000).size == 1000


def test_a_bitmap_is_taken_apart_in_pieces():
    kept = random_positions(5_000_003, 2_500_000)
    blob = pack(kept, 5_000_003)
    assert blob[0] == BITMAP
    assert np.array_equal(unpack(blob, 5_000_003), kept)
