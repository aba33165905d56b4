"""The shim itself: what it computes, and that it finds the mistakes planted in planted.cu."""

import numpy as np
import pytest

from tests.cuda.shim import LaunchError

NUMBERS = np.arange(100, 228, dtype=np.int32)


def ran(shim, name, *arguments, out=128, dtype=np.int32):
    result = np.full(out * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype)
    shim(f"planted_{name}", *arguments, result)
    return result


# ---- barriers


def test_barriers_hold_under_every_schedule(scheduled):
    assert np.array_equal(ran(scheduled, "mirror", True, NUMBERS), NUMBERS[::-1])
    assert np.array_equal(ran(scheduled, "previous_warp", True, NUMBERS), np.r_[NUMBERS[:32], NUMBERS[:96]])
    assert np.array_equal(ran(scheduled, "rounds", True, 9), np.full(128, 36))


def test_a_missing_barrier_reads_poison_even_in_order(shim):
    assert np.array_equal(ran(shim, "mirror", False, NUMBERS)[:64], np.full(64, -1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_missing_barrier_that_order_hides_shows_under_random_schedules(shim, seed):
    wanted = np.r_[NUMBERS[:32], NUMBERS[:96]]
    assert np.array_equal(ran(shim, "previous_warp", False, NUMBERS), wanted)
    shim.seed(seed)
    assert not np.array_equal(ran(shim, "previous_warp", False, NUMBERS), wanted)
    shim.seed(0)


def test_a_buffer_overwritten_too_early_shows(scheduled):
    assert not np.array_equal(ran(scheduled, "rounds", False, 9), np.full(128, 36))


def test_a_seed_names_one_schedule(shim):
    def order(seed):
        shim.seed(seed)
        return ran(shim, "tickets", 4, np.zeros(1, np.uint32), out=256, dtype=np.uint32)

    assert np.array_equal(order(0), np.arange(256))
    assert np.array_equal(order(5), order(5))
    assert not np.array_equal(order(5), order(6))
    assert np.array_equal(np.sort(order(5)), np.arange(256))
    shim.seed(0)


# ---- what never ends, and what should not


def report(shim, name, *arguments):
    with pytest.raises(LaunchError) as caught:
        ran(shim, name, *arguments)
    return str(caught.value)


def test_a_deadlock_says_who_waits_where(scheduled):
    text = report(scheduled, "some_never_arrive")
    assert text.startswith("deadlock in block (")
    assert "__syncthreads at " in text
    assert "planted.cu:" in text
    assert "arrived threads 0-39\n" in text
    assert text.endswith("returned: threads 40-63")


def test_divergent_barriers_are_told_apart(scheduled):
    text = report(scheduled, "two_barriers")
    assert text.startswith("divergent barriers in block (0, 0, 0)")
    assert text.count("__syncthreads at ") == 2


def test_divergent_collectives_are_told_apart(scheduled):
    text = report(scheduled, "divergent_collectives")
    assert text.startswith("divergent warp collectives")
    assert "__any_sync at " in text
    assert "__shfl_sync at " in text


def test_a_lane_that_never_comes_is_a_deadlock(scheduled):
    text = report(scheduled, "missing_lane")
    assert "__syncwarp at " in text
    assert "(lanes 0xffffffff): arrived threads 0-4, 6-31" in text
    assert text.endswith("returned: threads 5")


def test_a_lane_outside_the_mask_is_refused(shim):
    assert "the calling lane is not in the mask" in report(shim, "foreign_mask")


def test_a_failed_launch_leaves_nothing_behind(scheduled):
    report(scheduled, "some_never_arrive")
    assert np.array_equal(ran(scheduled, "mirror", True, NUMBERS), NUMBERS[::-1])


# ---- memory


def test_shared_memory_holds_nan_in_every_block(scheduled):
    assert np.isnan(ran(scheduled, "uninitialised", out=64, dtype=np.float32)).all()


def test_copies_arrive_with_the_wait_for_their_group(scheduled):
    source = np.arange(256, dtype=np.float32)
    out = ran(scheduled, "copies", True, source, 20, out=384, dtype=np.float32)
    assert np.array_equal(out[:128], np.r_[source[:80], np.zeros(48)])
    assert np.isnan(out[128:256]).all()
    assert np.array_equal(out[256:], source[128:])
    early = ran(scheduled, "copies", False, source, 20, out=384, dtype=np.float32)
    assert np.isnan(early[:256]).all()


@pytest.mark.parametrize(
    ("blocks", "threads", "shared", "allowed", "reason"),
    [
        (1, 1025, 0, -1, "invalid configuration"),
        (0, 32, 0, -1, "invalid configuration"),
        (1, 32, 49_153, 49_152, "invalid argument"),
        (1, 32, 232_449, 300_000, "invalid argument"),
    ],
)
def test_launches_that_a_device_refuses(shim, blocks, threads, shared, allowed, reason):
    counter = np.zeros(1, np.uint32)
    with pytest.raises(LaunchError, match=reason):
        ran(shim, "launch", blocks, threads, shared, allowed, counter, out=2048, dtype=np.uint32)
    assert counter[0] == 0
    ran(shim, "launch", 1, 1024, 232_448, 232_448, counter, out=2048, dtype=np.uint32)
    assert counter[0] == 1024


# ---- collectives, against the same formulas in numpy


def test_collectives(scheduled, rng):
    x = rng.integers(0, 900, 32).astype(np.int32)
    lane = np.arange(32)
    bits = np.uint32(1) << lane.astype(np.uint32)
    got = ran(scheduled, "collectives", x, out=15 * 32).reshape(15, 32).view(np.uint32)
    ballot = (bits[x % 3 == 0]).sum()
    wanted = [
        x[31 - lane],
        x[lane // 8 * 8 + 3],
        x[lane ^ 5],
        np.where(lane % 16 >= 3, x[lane - 3], x),
        np.where(lane % 8 < 3, x[np.minimum(lane + 5, 31)], x),
        np.full(32, ballot),
        np.full(32, int((x == 7).any()) + 2),
        [bits[x % 5 == value % 5].sum() for value in x],
        np.zeros(32),  # 0xffffffff + 1
        np.full(32, x.sum()),
        np.full(32, x.min()),
        np.full(32, x.max()),
        np.full(32, np.bitwise_and.reduce(x)),
        np.full(32, np.bitwise_or.reduce(x)),
        np.full(32, np.bitwise_xor.reduce(x)),
    ]
    for row, (found, right) in enumerate(zip(got, wanted, strict=True)):
        assert np.array_equal(found, np.asarray(right).astype(np.uint32)), row


def test_parts_of_a_warp_meet_apart(scheduled, rng):
    x = rng.integers(0, 900, 32).astype(np.int32)
    difference = x[:16].sum() - x[16:].sum()
    assert np.array_equal(ran(scheduled, "halves", x, out=32), np.repeat([difference, -difference], 16))


def test_coordinates(scheduled):
    block, z, y, x = np.meshgrid(range(12), range(3), range(4), range(5), indexing="ij")
    got = ran(scheduled, "coordinates", out=720, dtype=np.uint32)
    assert np.array_equal(got, (block * 1_000_000 + x + 100 * y + 10_000 * z).ravel())


# ---- matrices


def bfloat16(x):
    """Bits of float32 numbers that bfloat16 can hold."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(("bf16", "bits"), [(True, bfloat16), (False, lambda x: x.astype(np.float16).view(np.uint16))])
def test_mma_of_16_bit_numbers(scheduled, rng, bf16, bits):
    a, b, start = (rng.integers(-9, 10, shape).astype(np.float64) for shape in ((16, 16), (16, 8), (16, 8)))
    d = start.astype(np.float32)
    scheduled("planted_multiply", bf16, bits(a), bits(b.T.copy()), d)
    assert np.array_equal(d, a @ b + start)


def test_mma_of_tf32_drops_13_bits(scheduled, rng):
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    d = np.full((16, 8), np.nan, np.float32)
    scheduled("planted_multiply_tf32", a, b, d)
    short_a, short_b = ((m.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32).astype(np.float64) for m in (a, b))
    assert np.abs(d - short_a @ short_b).max() < 1e-5
    assert np.abs(d - a.astype(np.float64) @ b).max() > 1e-5


def test_ldmatrix_hands_each_lane_its_pairs(scheduled):
    """Lane l holds columns 2 (l % 4) and the next of row l / 4, or with .trans the same of the transposed matrix."""
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = ran(scheduled, "matrices", matrices, out=256, dtype=np.uint32)
    pairs = np.stack([out & 0xFFFF, out >> 16], -1).reshape(2, 4, 8, 4, 2)
    assert np.array_equal(pairs[0].reshape(4, 8, 8), matrices)
    assert np.array_equal(pairs[1].reshape(4, 8, 8), matrices.transpose(0, 2, 1))
