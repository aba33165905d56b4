"""The smallest values of all layers at once, against a stable sort of each, under every schedule."""

import numpy as np
import pytest

from tests.cuda.products import poisoned
from tests.cuda.selection import smallest

TILE = 8192


def expected(values: np.ndarray, count: int) -> np.ndarray:
    """By definition: rising magnitude, NaN last, ties by number; then by number."""
    order = np.lexsort((np.arange(len(values)), np.abs(values)))
    return np.sort(order[:count])


def check(shim, layers: list[np.ndarray], counts: list[int]) -> None:
    found = smallest(shim, layers, counts)
    for layer, count, numbers in zip(layers, counts, found, strict=True):
        assert np.array_equal(numbers, expected(layer, count)), f"{count} of {len(layer)} values"


def normal(generator, *sizes: int) -> list[np.ndarray]:
    return [generator.standard_normal(size).astype(np.float32) for size in sizes]


def test_layers_of_all_sizes(scheduled, rng):
    """Empty ones, one value, a tile and its neighbours; nothing, some or everything taken."""
    sizes = (0, 1, 2, 31, TILE - 1, 0, TILE, TILE + 1, 3000, 2 * TILE + 77, 0, 5)
    layers = normal(rng, *sizes)
    check(scheduled, layers, [0, 1, 1, 31, 500, 0, 0, TILE + 1, 2999, 12345, 0, 0])
    check(scheduled, layers, [size // 3 for size in sizes])


def test_ties_go_to_the_lowest_number(scheduled, rng):
    """Zeros of both signs, one value, and few different ones across tiles."""
    zeros = np.where(rng.random(TILE + 900) < 0.5, -0.0, 0.0).astype(np.float32)
    ones = rng.choice(np.float32([-1, 1]), 2 * TILE + 50)
    coarse = (rng.integers(-3, 4, 3 * TILE) / 2).astype(np.float32)
    check(scheduled, [zeros, ones, coarse], [TILE + 10, 2 * TILE - 1, TILE + 4321])


def test_numbers_that_are_none(scheduled, rng):
    """Infinities come after all numbers, NaNs after these whatever their bits, and smallest of all a denormal."""
    (layer,) = normal(rng, 700)
    layer[[3, 90]], layer[[5, 60, 600]], layer[[100, 7]] = np.inf, np.nan, [-np.inf, 1e-42]
    layer.view(np.uint32)[60] |= 0x80000005
    for count in (1, 694, 695, 696, 697, 698, 700):
        check(scheduled, [layer], [count])


def test_keys_that_differ_in_every_digit(shim, rng):
    """All magnitudes that a float has, and neighbours in the last digit."""
    wide = rng.integers(0, 0x7F800001, 20000).astype(np.uint32).view(np.float32)
    near = (np.float32(0.75).view(np.uint32) + rng.permutation(20000).astype(np.uint32)).view(np.float32)
    check(shim, [wide, near], [9999, 4097])


def test_the_schedule_changes_no_bit(shim, rng):
    layers, counts = normal(rng, 9000, 300), [800, 30]

    def numbers(seed):
        shim.seed(seed)
        return [found.tobytes() for found in smallest(shim, layers, counts)]

    assert all(numbers(seed) == numbers(0) for seed in (1, 2))
    shim.seed(0)


@pytest.mark.parametrize(("layers", "n"), [(1, 1 << 31), (1 << 20, 5)])
def test_refusals(shim, layers, n):
    nothing = poisoned(1, np.int64)
    assert shim.value("fedsparse_cuda_smallest_size", layers, n) == 0
    arguments = (nothing, layers, n, nothing, nothing, nothing, nothing, None)
    assert shim.value("fedsparse_cuda_smallest", *arguments) == 1


def test_no_layers(shim):
    nothing = poisoned(0, np.float32)
    shim("fedsparse_cuda_smallest", nothing, 0, 0, nothing, nothing, nothing, nothing, None)
