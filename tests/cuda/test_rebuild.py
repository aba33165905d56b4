"""Patterns changed on the device against the functions of the CPU engine, under every schedule."""

import numpy as np
import pytest
import torch

from fedsparse.backends import Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import product_cases
from tests.cuda.products import FLOAT16, FLOAT32
from tests.cuda.selection import carry, exchange, tap_list
from tests.cuda.test_csr16 import SPECIAL, one_case, stored


def some(generator: np.random.Generator, choices: np.ndarray, count: int) -> np.ndarray:
    return np.sort(generator.choice(choices, count, replace=False)).astype(np.int64)


def check(shim, pattern: Pattern, dropped: np.ndarray, grown: np.ndarray) -> None:
    rows = pattern.row_start.numpy(), pattern.column.numpy()
    found = exchange(shim, *rows, pattern.size // pattern.shape[0], dropped, grown)
    wanted = pattern.exchanged(torch.from_numpy(dropped), torch.from_numpy(grown))
    assert np.array_equal(found.row_start, wanted.row_start.numpy())
    assert found.column.tobytes() == wanted.column.numpy().tobytes()
    assert np.array_equal(found.places, pattern.carry_to(wanted).numpy())


def changes(generator: np.random.Generator, pattern: Pattern) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nothing, as many dropped as grown, more of either, and everything."""
    pruned, kept = (~pattern.mask()).view(-1).nonzero().squeeze(1).numpy(), np.arange(pattern.nnz)
    most = min(len(pruned), pattern.nnz)
    counts = [(0, 0), (most // 2, most // 2), (pattern.nnz // 3, 1), (1, len(pruned) // 2), (pattern.nnz, len(pruned))]
    return [
        (some(generator, kept, min(drops, pattern.nnz)), some(generator, pruned, min(grows, len(pruned))))
        for drops, grows in counts
    ]


def test_exchanged_patterns(scheduled, rng):
    """Rows that keep nothing or everything, narrow and wide columns; what changes is nothing, some or all."""
    patterns = [product.pattern for product in product_cases(np.random.default_rng(7), 12)]
    wide = torch.from_numpy(rng.random((3, 70000)) < 0.02)
    for pattern in (*patterns, Pattern.from_mask(wide)):
        for dropped, grown in changes(rng, pattern):
            check(scheduled, pattern, dropped, grown)


def test_values_and_states_move_along(scheduled, rng):
    """Five arrays are more than one launch takes; grown values begin with the fill of their array."""
    pattern = one_case((40, 30, 3, 3), (1, 30, 5, 5), Geometry(), density=0.2).pattern
    dropped, grown = changes(rng, pattern)[1]
    places = exchange(
        scheduled, pattern.row_start.numpy(), pattern.column.numpy(), pattern.size // 40, dropped, grown
    ).places
    arrays = [rng.standard_normal(pattern.nnz).astype(np.float32) for _ in range(5)]
    fills = [0.0, 0.5, np.nan, -1.0, 2.0]
    for array, fill, moved in zip(arrays, fills, carry(scheduled, places, arrays, fills), strict=True):
        np.testing.assert_array_equal(moved, np.where(places < 0, np.float32(fill), array[places]))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_lists_are_those_of_the_host(scheduled, backward):
    products = [*product_cases(np.random.default_rng(3), 12), *SPECIAL.values()]
    for number, product in enumerate(products):
        held = stored(product, (FLOAT32, FLOAT16)[number % 2])
        wanted, found = held.list(scheduled, backward), tap_list(scheduled, held, backward)
        for name, ours, theirs in zip(("start", "offset", "value"), found, wanted, strict=True):
            assert np.array_equal(ours, theirs), f"{name} of {product}"
