"""Pruned activations, packed and restored, against a stable sort, under every schedule."""

import numpy as np
import pytest
import torch

from fedsparse.backends.activation import Pruning, plain_pack, plain_unpack
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, as_float, as_stored, poisoned
from tests.cuda.selection import Packed, pack_largest, unpack

TILE = 8192
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


def kept_elements(x: np.ndarray, k: int) -> np.ndarray:
    """By definition: NaN first, then falling magnitude, ties by index; zeros never."""
    number = ~np.isnan(x)
    order = np.lexsort((np.arange(x.size), -np.where(number, np.abs(x), np.inf), number))
    kept = np.zeros(x.size, bool)
    kept[order[:k]] = True
    return kept & (x != 0)


def check(shim, stored: np.ndarray, dtype: int, k: int, value_dtype: int = FLOAT32, *, rows: int = 1) -> Packed:
    x = as_float(stored, dtype)
    kept = np.concatenate([kept_elements(row, k) for row in np.split(x, rows)])
    packed = pack_largest(shim, stored, dtype, k, value_dtype, rows=rows)
    flags = np.unpackbits(packed.bits.view(np.uint8), bitorder="little").astype(bool)
    assert np.array_equal(flags[: x.size], kept), f"{k} of {x.size} elements"
    assert not flags[x.size :].any()
    counts = np.add.reduceat(np.append(kept, False), np.arange(0, x.size, 512)) if x.size else []
    assert np.array_equal(packed.starts, np.cumsum([0, *counts]))
    wanted = as_stored(x[kept], value_dtype)
    np.testing.assert_array_equal(as_float(packed.values, value_dtype), as_float(wanted, value_dtype))
    back, zeros = as_float(unpack(shim, packed, x.size, dtype, value_dtype), dtype), np.zeros(x.size)
    zeros[kept] = as_float(as_stored(as_float(wanted, value_dtype), dtype), dtype)
    np.testing.assert_array_equal(back, zeros)
    assert not np.signbit(back[~kept]).any()
    return packed


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_all_sizes(scheduled, rng, name):
    """One element, a word, a group, a tile and their neighbours; nothing, some or everything kept."""
    for size in (1, 33, 512, 513, TILE - 1, 2 * TILE + 700):
        x = as_stored(rng.standard_normal(size) * 3, DTYPES[name])
        for k in sorted({0, 1, size // 3, size}) if size < TILE else (size // 10, size // 2):
            check(scheduled, x, DTYPES[name], k)


def test_an_empty_tensor(shim):
    packed = check(shim, np.zeros(0, np.float32), FLOAT32, 0)
    assert packed.starts.tolist() == [0]


def test_zeros_take_no_space(scheduled, rng):
    """What a ReLU has zeroed is never stored, whether all is kept or more than is left."""
    x = as_stored(np.maximum(rng.standard_normal(TILE + 321), 0), FLOAT32)
    x[:40] = -0.0
    for k in (x.size, x.size - 5, x.size * 3 // 4):
        assert check(scheduled, x, FLOAT32, k).values.size == np.count_nonzero(x)


def test_ties_go_to_the_lowest_index(scheduled, rng):
    """The cut runs through equal elements of several tiles."""
    x = as_stored(rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0], 3 * TILE + 11), FLOAT32)
    ones = as_stored(np.ones(2 * TILE), FLOAT32)
    for k in (int((np.abs(x) == 2).sum()) + TILE // 3, 77):
        check(scheduled, x, FLOAT32, k)
    check(scheduled, ones, FLOAT32, TILE + 333)


@pytest.mark.parametrize("name", DTYPES)
def test_rows_of_all_sizes(scheduled, rng, name):
    """Shorter than a warp, than a word's step, than a tile, across tiles; none, some or all of each row."""
    for rows, size in ((40, 1), (9, 3), (3, 33), (5, 512), (20, 129), (2, TILE + 5)):
        x = as_stored(rng.standard_normal(rows * size) * 3, DTYPES[name])
        for k in {0, size // 3, size - 1, size} if size < TILE else (size // 10,):
            check(scheduled, x, DTYPES[name], k, rows=rows)


def test_the_ends_of_rows_count(scheduled):
    """Where rows do not begin at 16 bytes, numbers before the first piece of so many, and behind the last."""
    rows, size = 3, 2 * TILE + 3
    x = np.tile(np.linspace(1, 2, size), (rows, 1))
    x[:, :7] = x[:, -7:] = 3
    for name, dtype in DTYPES.items():
        check(scheduled, as_stored(x.reshape(-1), dtype), dtype, 14 if name == "float32" else 15, rows=rows)


def test_ties_in_rows_go_to_the_lowest_index_of_each(scheduled, rng):
    """Some rows take all of their ties and some do not; in the longest rows the last one lies in the second tile."""
    for rows, size in ((6, 77), (2, TILE + 900)):
        x = rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0], (rows, size))
        x[1] = 1.0
        stored = as_stored(x.reshape(-1), FLOAT32)
        for k in (size // 5, size // 2, size - 3):
            check(scheduled, stored, FLOAT32, k, rows=rows)


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_that_are_none(shim, rng, name):
    """NaN is kept first, whatever its bits, then infinities."""
    x = rng.standard_normal(900)
    x[[3, 90, 800]], x[[5, 60, 600]] = [np.inf, -np.inf, np.inf], [np.nan, -np.nan, np.nan]
    stored = as_stored(x, DTYPES[name])
    if name == "float32":
        stored.view(np.uint32)[600] = 0x7FC00001
    for k in (2, 3, 4, 6, 7, 500):
        check(shim, stored, DTYPES[name], k)
    for k in (1, 3, 200):
        check(shim, stored, DTYPES[name], k, rows=3)


@pytest.mark.parametrize("values", DTYPES)
@pytest.mark.parametrize("name", DTYPES)
def test_values_of_every_type(shim, rng, name, values):
    check(shim, as_stored(rng.standard_normal(1500), DTYPES[name]), DTYPES[name], 600, DTYPES[values])


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_means_what_plain_torch_does(shim, rng, keep):
    """Bits and values are those of `plain_pack`; both restore the same tensor."""
    x = torch.from_numpy(rng.standard_normal((5, 3, 9, 7)).astype(np.float32)).relu()
    pruning = Pruning(keep, "global")
    plain, k = plain_pack(x, pruning), pruning.count(x.numel())
    packed = pack_largest(shim, x.numpy().reshape(-1), FLOAT32, k)
    assert packed.bits.view(np.uint8)[: len(plain.bits)].tobytes() == plain.bits.numpy().tobytes()
    assert packed.values.tobytes() == plain.values.numpy().tobytes()
    restored = plain_unpack(plain, tuple(x.shape), torch.float32).numpy().reshape(-1)
    assert unpack(shim, packed, x.numel(), FLOAT32).tobytes() == restored.tobytes()


def test_refusals(shim):
    nothing = poisoned(4, np.float32)
    assert shim.value("fedsparse_cuda_mark_largest_size", 1, 1 << 31) == 0
    assert shim.value("fedsparse_cuda_mark_largest_size", 1 << 16, 1 << 15) == 0
    for rows, size, dtype, k in (
        (1, 1 << 31, FLOAT32, 1), (1 << 16, 1 << 15, FLOAT32, 1), (2, 2, FLOAT32, 3), (1, 4, FLOAT32, -1), (1, 4, 9, 2),
    ):  # fmt: skip
        arguments = (nothing, rows, size, dtype, k, nothing, nothing, nothing, None)
        assert shim.value("fedsparse_cuda_mark_largest", *arguments) == 1
