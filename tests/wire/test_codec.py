import math
import struct
import zlib
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import WireError
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire import IndexSet, Payload, Quantized, SignMap, SparseVector, decode, encode

HEADER = struct.Struct("<4sHQI")
DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


def topology(seed=0, density=0.3):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "fc.weight": (5, 40), "full.weight": (2, 2)}
    masks = {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}
    return Topology.from_masks(masks | {"full.weight": torch.ones(2, 2, dtype=torch.bool)})


def weights(found):
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(p.nnz, generator=generator) for name, p in found.items()}
    return Weights(found, values, {"fc.bias": torch.arange(5.0), "bn.num_batches_tracked": torch.tensor(7)})


def small():
    extras = {
        "top": {"fc.weight": SparseVector(200, torch.tensor([3, 77]), torch.tensor([-1.5, 2.0]))},
        "votes": IndexSet(12, torch.tensor([0, 11])),
        "direction": SignMap(12, torch.tensor([2, 3, 9]), torch.tensor([1, -1, -1], dtype=torch.int8)),
        "moved": Quantized(torch.tensor([[5, -127, 0]], dtype=torch.int8), 0.75),
        "counts": {"fc.weight": 3},
        "loss": 0.25,
        "kind": "adjust",
    }
    return Payload("train", 4, weights(topology()), extras)


def sealed(body, *, magic=b"FSPW", version=1, length=None):
    return HEADER.pack(magic, version, len(body) if length is None else length, zlib.crc32(body)) + body


def same(a, b):
    """Whether two sections agree in type and to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, Topology):
        return isinstance(b, Topology) and a.digest == b.digest and list(a) == list(b)
    if isinstance(a, Weights):
        return same(a.topology, b.topology) and same(a.values, b.values) and same(a.dense, b.dense)
    if isinstance(a, SparseVector) and not same(a.values, b.values):
        return False
    if isinstance(a, SignMap) and not same(a.signs, b.signs):
        return False
    if isinstance(a, IndexSet):
        return type(a) is type(b) and a.size == b.size and same(a.indices, b.indices)
    if isinstance(a, Quantized):
        return isinstance(b, Quantized) and same(a.codes, b.codes) and same(a.scale, b.scale)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and a == b


def bits(tensor):
    return tensor.clone().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def assert_same(sent, received):
    assert (received.task, received.round) == (sent.task, sent.round)
    assert (received.weights is None) == (sent.weights is None)
    assert sent.weights is None or same(sent.weights, received.weights)
    assert same(sent.extras, received.extras)


# ---- round trips
def test_everything_arrives():
    message = small()
    received = decode(encode(message))
    assert_same(message, received)
    assert list(received.weights.topology) == ["conv.weight", "fc.weight", "full.weight"]
    assert received.weights.topology["conv.weight"].flat.equal(message.weights.topology["conv.weight"].flat)
    assert received.weights.dense["bn.num_batches_tracked"].shape == ()


def test_equal_messages_give_equal_bytes():
    assert encode(small()) == encode(small())


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview, lambda blob: memoryview(blob + blob)[: len(blob)]])
def test_any_buffer_is_read(buffer):
    assert_same(small(), decode(buffer(encode(small()))))


def test_a_strided_view_is_read():
    blob = encode(small())
    doubled = bytearray(2 * len(blob))
    doubled[::2] = blob
    assert_same(small(), decode(memoryview(doubled)[::2]))


def test_decoded_tensors_own_their_memory():
    blob = bytearray(encode(Payload("t", 0, None, {"a": torch.ones(3), "b": IndexSet(9, torch.tensor([1, 5]))})))
    received = decode(blob)
    blob[:] = bytes(len(blob))
    assert received.extras["a"].tolist() == [1, 1, 1]
    received.extras["a"][0] = 5.0
    received.extras["b"].indices[0] = 0
    assert received.extras["a"].tolist() == [5, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 1)])
def test_tensors_of_every_dtype_and_shape(dtype, shape):
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    received = decode(encode(Payload("t", 0, None, {"x": tensor}))).extras["x"]
    assert same(tensor, received)


def test_views_gradients_and_parameters_are_sent_by_value():
    matrix = torch.arange(6.0).view(2, 3)
    sent = {"t": matrix.T, "s": matrix[:, 1], "p": torch.nn.Parameter(matrix)}
    received = decode(encode(Payload("t", 0, None, sent))).extras
    assert received["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert received["s"].tolist() == [1, 4]
    assert received["p"].equal(matrix)
    assert not received["p"].requires_grad


def test_an_empty_tensor_may_have_stride_zero():
    empty = torch.empty_strided((0,), (0,))
    assert same(empty, decode(encode(Payload("t", 0, None, {"x": empty}))).extras["x"])


def test_floats_keep_every_bit():
    quiet, signalling = struct.unpack("<2f", struct.pack("<2I", 0x7FC00001, 0xFFC12345))
    tensor = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, quiet, signalling])
    numbers = {"nan": math.nan, "zero": -0.0, "inf": -math.inf, "small": 5e-324}
    sent = Payload("t", 0, None, {"x": tensor, **numbers})
    assert_same(sent, decode(encode(sent)))


NUMBERS = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.booleans(), st.text(max_size=8))


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    raw = draw(st.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    kind = draw(st.sampled_from([torch.float64, torch.int64]))
    return torch.tensor(list(raw), dtype=torch.uint8).view(kind).view(shape)


@st.composite
def index_sets(draw):
    size = draw(st.integers(0, 500))
    kept = sorted(draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=size)))
    indices = torch.tensor(kept, dtype=torch.int64)
    kind = draw(st.sampled_from([IndexSet, SparseVector, SignMap]))
    if kind is IndexSet:
        return IndexSet(size, indices)
    if kind is SignMap:
        return SignMap(size, indices, (1 - 2 * (indices % 2)).to(torch.int8))
    return SparseVector(size, indices, torch.rand(len(indices), generator=torch.Generator().manual_seed(size)))


@st.composite
def grids(draw):
    dtype = draw(st.sampled_from([torch.int8, torch.int16]))
    limit = torch.iinfo(dtype).max
    codes = draw(st.lists(st.integers(-limit, limit), max_size=12))
    shape = (len(codes), 1) if draw(st.booleans()) else (len(codes),)
    scale = draw(st.floats(0, torch.finfo(torch.float32).max, width=32))
    return Quantized(torch.tensor(codes, dtype=dtype).view(shape), scale)


TOPOLOGIES = st.builds(topology, st.integers(0, 50), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
LEAVES = st.one_of(NUMBERS, tensors(), index_sets(), grids(), TOPOLOGIES, st.builds(weights, TOPOLOGIES))
SECTIONS = st.recursive(LEAVES, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@settings(deadline=None)
@given(
    st.text(max_size=10),
    st.integers(0, 10**6),
    st.none() | st.builds(weights, TOPOLOGIES),
    st.dictionaries(st.text(max_size=5), SECTIONS, max_size=3),
)
def test_round_trip_of_any_message(task, round, found, extras):
    sent = Payload(task, round, found, extras)
    assert_same(sent, decode(encode(sent)))


# ---- sizes
def test_size_of_a_sparse_weight_is_bitmap_plus_values():
    # 200 of 1000 weights: 125 bytes of positions and 800 of values, besides the frame
    kept = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:200].sort().values
    found = Topology({"w": Pattern.from_flat((20, 50), kept)})
    blob = encode(Payload("t", 0, Weights(found, {"w": torch.zeros(200)}, {}), {}))
    empty = encode(Payload("t", 0, Weights(Topology(), {}, {}), {}))
    frame = 2 + len("element") + 1 + 1 + 1 + 2 + 1 + 1  # name, granularity, axes, extents, length, form, dtype
    assert len(blob) - len(empty) - frame <= 925
    assert 0 <= 925 - (len(blob) - len(empty) - frame) < 30  # what compression may save on so few bytes


def test_size_of_a_known_topology_is_its_digest_alone():
    found = weights(topology())
    full, short = (encode(Payload("t", 0, found, {}), known=known) for known in ((), [found.topology.digest]))
    values = sum(t.numel() * 4 for t in found.values.values()) + 5 * 4 + 8
    assert values < len(short) < len(full) - sum(p.size for p in found.topology.values()) // 16
    empty = encode(Payload("t", 0, Weights(Topology(), {}, found.dense), {}))
    assert len(short) - len(empty) == values - 5 * 4 - 8 + len(found.topology) - 1  # dtypes, less the empty list


def test_size_of_a_sign_map_is_positions_and_one_bit_each():
    signs = torch.randint(-1, 2, (1000,), generator=torch.Generator().manual_seed(0))
    found = SignMap.of(signs)
    frame = len(encode(Payload("t", 0, None, {"x": IndexSet(1000, found.indices)})))
    assert len(encode(Payload("t", 0, None, {"x": found}))) - frame == (len(found.indices) + 7) // 8
    # so at most 2 bits an entry
    full = len(encode(Payload("t", 0, None, {"x": SignMap.of(torch.ones(1000))})))
    assert full - len(encode(Payload("t", 0, None, {"x": SignMap.of(torch.ones(0))}))) <= 250


def test_size_of_a_grid_is_a_byte_an_entry():
    codes = torch.zeros(1000, dtype=torch.int8)
    frame = 18 + 2 + 8 + 1 + 4 + 8 + 4  # header, task, round, no weights, name and type of x, scale, dtype to extents
    assert len(encode(Payload("t", 0, None, {"x": Quantized(codes, 1.0)}))) == frame + 1000
    wide = encode(Payload("t", 0, None, {"x": Quantized(codes.short(), 1.0)}))
    assert len(wide) == frame + 2000


# ---- references
def test_a_reference_is_resolved_by_digest():
    message = small()
    found = message.weights.topology
    blob = encode(message, known={found.digest})
    received = decode(blob, topologies={found.digest: found})
    assert received.weights.topology is found
    assert_same(message, received)


def test_a_reference_to_an_unknown_topology_is_refused():
    message = small()
    digest, other = message.weights.topology.digest, topology(seed=5)
    blob = encode(message, known={digest})
    with pytest.raises(WireError, match=f"weights: topology {digest} is sent by reference but not held"):
        decode(blob)
    with pytest.raises(WireError, match="not held"):
        decode(blob, topologies={other.digest: other})


def test_a_new_topology_is_sent_in_full():
    message, other = small(), topology(seed=5)
    assert encode(message, known={other.digest}) == encode(message)


def test_references_work_in_extras_too():
    pool = {str(seed): topology(seed) for seed in range(3)}
    held = {found.digest: found for found in pool.values()}
    message = Payload("adapt", 0, None, {"pool": pool})
    blob = encode(message, known=held)
    assert len(blob) < 3 * 16 + 60  # digests, frame and names
    assert_same(message, decode(blob, topologies=held))


# ---- damage
def test_every_truncation_is_refused():
    blob = encode(small())
    for length in range(len(blob)):
        with pytest.raises(WireError):
            decode(blob[:length])


def test_every_truncation_of_the_body_is_refused_even_with_a_valid_checksum():
    body = encode(small())[HEADER.size :]
    for length in range(len(body)):
        with pytest.raises(WireError):
            decode(sealed(body[:length]))


def test_every_flipped_bit_is_refused():
    blob = encode(Payload("t", 1, weights(topology(density=0.1)), {"x": torch.tensor([1.0]), "n": 3}))
    for place in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(WireError):
            decode(damaged)


def test_trailing_bytes_are_refused():
    blob = encode(small())
    with pytest.raises(WireError, match="announces a body"):
        decode(blob + b"\0")
    with pytest.raises(WireError, match="1 bytes follow the end"):
        decode(sealed(blob[HEADER.size :] + b"\0"))


def test_foreign_bytes_and_versions_are_named():
    body = encode(small())[HEADER.size :]
    with pytest.raises(WireError, match="not a fedsparse message"):
        decode(sealed(body, magic=b"PK\3\4"))
    with pytest.raises(WireError, match=r"version 2, but this fedsparse reads version 1"):
        decode(sealed(body, version=2))
    with pytest.raises(WireError, match="at least 18 bytes, got 0"):
        decode(b"")


@settings(deadline=None)
@given(st.data())
def test_damage_under_a_valid_checksum_decodes_or_raises_wire_errors_only(data):
    body = bytearray(encode(small())[HEADER.size :])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = decode(sealed(bytes(body)))
    except WireError:
        return
    assert_same(received, decode(encode(received)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bodies_decode_or_raise_wire_errors_only(body):
    try:
        decode(sealed(body))
    except WireError:
        return


# ---- content that contradicts itself; bodies are written by hand: task "t", round 0
START = b"\x01t" + bytes(8)
EXTRAS = START + b"\x00\x01\x01x"  # no weights, one section named x
WEIGHTS = START + b"\x01"


def count(value):
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def pattern_bytes(shape, packed, granularity=b"element"):
    extents = b"".join(count(extent) for extent in shape)
    body = b"\x01w" + count(len(granularity)) + granularity + bytes([len(shape)]) + extents
    return body + count(len(packed)) + packed


HUGE = (1 << 31) - 1


def test_hand_written_body_is_the_format():
    assert decode(sealed(EXTRAS + b"\x07" + struct.pack("<q", -5))).extras == {"x": -5}
    assert encode(Payload("t", 0, None, {"x": -5})) == sealed(EXTRAS + b"\x07" + struct.pack("<q", -5))
    tensor = b"\x01\x00\x01" + count(2) + struct.pack("<2f", 1, 2)
    assert decode(sealed(EXTRAS + tensor)).extras["x"].tolist() == [1, 2]
    found = Topology({"w": Pattern.from_flat((2, 3), torch.tensor([1, 5]))})
    section = b"\x02" + bytes.fromhex(found.digest) + b"\x01\x01" + pattern_bytes((2, 3), b"\x00\x22")
    assert decode(sealed(EXTRAS + section)).extras["x"] == found
    assert encode(Payload("t", 0, None, {"x": found})) == sealed(EXTRAS + section)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (count(1 << 40) + b"t", "exceeds its limit"),
        (b"\xff" * 12, "more than 9 bytes"),
        (b"\x02\xff\xfe" + bytes(10), "not UTF-8"),
        (START + b"\x02", "weights are absent"),
        (START + b"\x00" + count(1 << 50), "exceeds its limit"),
        (EXTRAS + b"\x63", "unknown section type 99"),
        (EXTRAS + b"\x06\x02", "truth value"),
        (EXTRAS + b"\x01\x63\x00", "unknown dtype 99"),
        (EXTRAS + b"\x01\x00\x01" + count(1 << 38), "bytes are announced"),
        (EXTRAS + b"\x01\x00\x02" + count(1 << 39) + count(1 << 39), "too large"),
        (EXTRAS + b"\x01\x00\x02" + count(0) + count(1 << 41), "exceeds its limit"),
        (EXTRAS + b"\x01\x00\x03" + count(0) + 2 * count(1 << 39), "too large"),
        (EXTRAS + b"\x01\x00\x63", "99 axes"),
        (EXTRAS + b"\x01\x09\x01\x01\x02", "neither 0 nor 1"),
        (EXTRAS + b"\x05" + count(1 << 31) + b"\x01\x01", "exceeds its limit"),
        (EXTRAS + b"\x05" + count(9) + b"\x03\x00\xff\x02", "beyond its 9 positions"),
        (EXTRAS + b"\x04" + count(9) + b"\x03\x00\xff\x01" + bytes(4), "36 bytes are announced, but 4"),
        (EXTRAS + b"\x0b" + count(9) + b"\x03\x00\x03\x00\x04", "signs set a bit beyond their 2 positions"),
        (EXTRAS + b"\x0b" + count(9) + b"\x03\x00\x03\x00", "1 bytes are announced, but 0"),
        (EXTRAS + b"\x0c" + struct.pack("<d", math.nan) + b"\x04\x01\x01\x05", "scale must be in the range"),
        (EXTRAS + b"\x0c" + struct.pack("<d", -1) + b"\x04\x01\x01\x05", "scale must be in the range"),
        (EXTRAS + b"\x0c" + struct.pack("<d", 1) + b"\x04\x01\x01\x80", "codes must be in .-127, 127."),
        (EXTRAS + b"\x0c" + struct.pack("<d", 1) + b"\x00\x00" + bytes(4), "codes must be int8 or int16"),
        (EXTRAS + b"\x0c" + struct.pack("<d", 1) + b"\x04\x01" + count(9) + bytes(4), "9 bytes are announced"),
        (EXTRAS + b"\x0c" + bytes(4), "8 bytes are announced, but 4"),
        (EXTRAS + b"\x0a\x02\x01a\x07" + bytes(8) + b"\x01a\x07" + bytes(8), "'a' appears twice"),
        (EXTRAS + b"\x0a\x01\x01a" * 20, "nested more than 16"),
        (EXTRAS + b"\x02" + bytes(16) + b"\x02", "reference .0. or complete"),
        (EXTRAS + b"\x02" + bytes(16) + b"\x01\x00", "but its patterns have digest"),
        (
            EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((2, 3), b"\x00\x22", b"elements"),
            "granularity",
        ),
        (EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((3,), b"\x00\x02"), "axes"),
        (EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((2, 0), b"\x01"), "positions"),
        (EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((HUGE, 2), b"\x01"), "must have 1 to"),
        (
            EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((HUGE, 1), b"\x01"),
            "w: the positions .* take more",
        ),
        (
            EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + b"\x03a\nb" + pattern_bytes((2, 3), b"\x00\x22")[2:],
            "cannot be called",
        ),
        (
            EXTRAS + b"\x02" + bytes(16) + b"\x01\x01" + pattern_bytes((9, 9), b"\x00\x22"),
            "has 11 bytes, got 1",
        ),
        (WEIGHTS + bytes(16) + b"\x01\x02" + 2 * pattern_bytes((2, 3), b"\x00\x22"), "'w' appears twice"),
    ],
)
def test_contradictions_are_refused(body, message):
    with pytest.raises(WireError, match=message):
        decode(sealed(body))


def test_positions_that_take_more_memory_than_allowed_are_refused():
    """26 of 40,000 positions; the bitmap takes 5,000 bytes, each kept position 8."""
    section = IndexSet(40_000, torch.arange(0, 26))
    blob = encode(Payload("t", 0, None, {"a": section, "b": section}))
    enough = 2 * (5_000 + 26 * 8)
    assert decode(blob, most_bytes=enough).extras["b"].indices.numel() == 26
    with pytest.raises(WireError, match="there are 26 positions, and there is memory for 25"):
        decode(blob, most_bytes=enough - 1)


def test_other_masks_cannot_take_the_digest_of_known_ones():
    """A name with a line end in it would give one pattern the digest of two."""
    a, b = (Pattern.from_flat((2, 3), torch.tensor(kept)) for kept in ([1, 5], [0]))
    forged = Topology({f"a {a.digest}\nb": b})
    assert forged.digest == Topology({"a": a, "b": b}).digest
    with pytest.raises(WireError, match="a weight cannot be called"):
        decode(encode(Payload("t", 0, None, {"x": forged})))


def test_a_weight_cannot_be_both_sparse_and_dense():
    found = Topology({"w": Pattern.from_flat((2, 3), torch.tensor([1, 5]))})
    sparse = bytes.fromhex(found.digest) + b"\x00" + b"\x00" + struct.pack("<2f", 1, 2)
    dense = b"\x01\x01w\x01\x00\x00".replace(b"\x01\x00\x00", b"\x00\x00", 1) + struct.pack("<f", 3)
    with pytest.raises(WireError, match="both as sparse values and as a dense tensor"):
        decode(sealed(WEIGHTS + sparse + dense + b"\x00"), topologies={found.digest: found})


# ---- what cannot be sent
@pytest.mark.parametrize(
    ("section", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), "extras/a/b: .*complex64 cannot be sent"),
        (torch.zeros(2, 2).to_sparse(), "cannot be sent"),
        ([1, 2], "a list cannot be sent"),
        (None, "a NoneType cannot be sent"),
        (1 << 63, "does not fit 64 bits"),
        ("\ud800", "not valid Unicode"),
        (torch.empty(0, 1 << 41), "too large to be sent"),
    ],
)
def test_what_cannot_be_sent_is_named(section, message):
    with pytest.raises(WireError, match=message):
        encode(Payload("t", 0, None, {"a": {"b": section}}))


def test_nesting_has_an_end_when_sending_too():
    section = 1
    for _ in range(20):
        section = {"a": section}
    with pytest.raises(WireError, match="nested more than 16"):
        encode(Payload("t", 0, None, {"a": section}))
