"""Patterns changed on the device, any number at once, against the functions of the CPU engine, under every schedule."""

import numpy as np
import pytest
import torch

from fedsparse.pattern import Pattern
from fedsparse.pattern.rebuilding import KEPT, NOT_RISING, OUTSIDE
from fedsparse.testing import product_cases
from tests.cuda.products import FLOAT16, FLOAT32
from tests.cuda.rebuilding import Array, Weight, carry, check_growth, exchange, list_by_input
from tests.cuda.selection import tap_list
from tests.cuda.test_csr16 import SPECIAL, stored

Change = tuple[np.ndarray, np.ndarray]  # values that are dropped, flat positions that are grown


def some(generator: np.random.Generator, choices: np.ndarray, count: int) -> np.ndarray:
    return np.sort(generator.choice(choices, count, replace=False)).astype(np.int64)


def weight(pattern: Pattern) -> Weight:
    return Weight(pattern.shape, pattern.row_start.numpy(), pattern.column.numpy())


def changes(generator: np.random.Generator, pattern: Pattern) -> list[Change]:
    """Nothing, as many dropped as grown, more of either, and everything."""
    pruned, kept = (~pattern.mask()).view(-1).nonzero().squeeze(1).numpy(), np.arange(pattern.nnz)
    most = min(len(pruned), pattern.nnz)
    counts = [(0, 0), (most // 2, most // 2), (pattern.nnz // 3, 1), (1, len(pruned) // 2), (pattern.nnz, len(pruned))]
    return [
        (some(generator, kept, min(drops, pattern.nnz)), some(generator, pruned, min(grows, len(pruned))))
        for drops, grows in counts
    ]


def after(pattern: Pattern, dropped: np.ndarray, grown: np.ndarray) -> Pattern:
    return pattern.exchanged(torch.from_numpy(dropped), torch.from_numpy(grown))


def arrays(generator: np.random.Generator, old: Weight, count: int) -> list[Array]:
    """Arrays of a weight's values; grown numbers begin with another fill in each, once with NaN."""
    fills = [0.0, 0.5, np.nan, -1.0, 2.0, 3.0]
    return [(generator.standard_normal(len(old.column)).astype(np.float32), fill) for fill in fills[:count]]


def drawn(generator: np.random.Generator) -> list[Pattern]:
    """Rows that keep nothing or all, narrow and wide columns and entries, and more weights than a launch takes."""
    patterns = [product.pattern for product in product_cases(np.random.default_rng(7), 34)]
    others = {(3, 70000): 0.02, (1200, 1, 8, 8): 0.02, (9, 5): -1.0, (7, 2, 3, 3): 2.0, (66, 700): 0.1}
    patterns += [Pattern.from_mask(torch.from_numpy(generator.random(shape) < others[shape])) for shape in others]
    order = generator.permutation(len(patterns)).tolist()
    return [patterns[i] for i in [*order, *order[:4]]]


def same(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    return ours.dtype == theirs.numpy().dtype and ours.tobytes() == theirs.numpy().tobytes()


def check_exchange(shim, patterns: list[Pattern], changed: list[Change]) -> None:
    found = exchange(shim, [(weight(p), *change) for p, change in zip(patterns, changed, strict=True)])
    for ours, pattern, change in zip(found, patterns, changed, strict=True):
        wanted = after(pattern, *change)
        assert same(ours.row_start, wanted.row_start)
        assert same(ours.column, wanted.column)


def check_lists(shim, patterns: list[Pattern]) -> None:
    for ours, pattern in zip(list_by_input(shim, [weight(p) for p in patterns]), patterns, strict=True):
        assert all(same(*pair) for pair in zip(ours, pattern.index[2:], strict=True)), pattern.shape


def check_carry(shim, generator: np.random.Generator, patterns: list[Pattern], changed: list[Change]) -> None:
    """Every weight with its own number of arrays, more than a task takes; places of every second one."""
    new = [after(pattern, *change) for pattern, change in zip(patterns, changed, strict=True)]
    moves = []
    for number, pair in enumerate(zip(patterns, new, strict=True)):
        old, now = map(weight, pair)
        moves.append((old, now, arrays(generator, old, number % 7), number % 2 == 0))
    for (_, _, given, wanted), ours, old, now in zip(moves, carry(shim, moves), patterns, new, strict=True):
        places = old.carry_to(now).numpy()
        if wanted:
            assert np.array_equal(ours.places, places)
        for (array, fill), moved in zip(given, ours.arrays, strict=True):
            taken = array[places] if array.size else np.float32(fill)
            np.testing.assert_array_equal(moved, np.where(places < 0, np.float32(fill), taken))


def test_exchanged_patterns(scheduled, rng):
    patterns = drawn(rng)
    for changed in zip(*(changes(rng, pattern) for pattern in patterns), strict=True):
        check_exchange(scheduled, patterns, list(changed))


def test_lists_by_input(scheduled, rng):
    check_lists(scheduled, drawn(rng))


def test_values_and_states_move_along(scheduled, rng):
    patterns = drawn(rng)
    for changed in zip(*(changes(rng, pattern) for pattern in patterns), strict=True):
        check_carry(scheduled, rng, patterns, list(changed))


def test_rows_by_the_tile(scheduled):
    """More rows than a block has bits for: it takes them in several turns, each behind the one before."""
    check_lists(scheduled, [Pattern.from_mask(torch.arange(140_000).view(-1, 1) % 7 < 3)])


def test_what_cannot_be_grown(scheduled, rng):
    patterns = [pattern for pattern in drawn(rng) if 2 < pattern.nnz < pattern.size - 2]
    for pattern in patterns[:6]:
        kept, size = int(pattern.flat[pattern.nnz // 2]), pattern.size
        good = (~pattern.mask()).view(-1).nonzero().squeeze(1).numpy()
        found = {
            0: [good, good[:0], good[-1:]],
            NOT_RISING: [good[::-1].copy(), np.repeat(good, 2)],
            KEPT: [np.sort(np.append(good, kept)), np.array([kept])],
            OUTSIDE: [np.append(good, size), np.array([-1]), np.array([size]), np.array([1 << 40])],
            NOT_RISING | KEPT: [np.array([kept, kept])],
            NOT_RISING | OUTSIDE: [np.append(good, -1)],
        }
        growths = [(weight(pattern), positions) for several in found.values() for positions in several]
        wanted = [fault for fault, several in found.items() for _ in several]
        assert check_growth(scheduled, growths).tolist() == wanted
    faults = check_growth(scheduled, [(weight(pattern), pattern.flat.numpy()[:1]) for pattern in patterns])
    assert faults.tolist() == [KEPT] * len(patterns)


def test_launches_do_not_follow_the_number_of_weights(shim, rng):
    pattern = Pattern.from_mask(torch.from_numpy(rng.random((12, 10)) < 0.3))
    old, (change, *_) = weight(pattern), changes(rng, pattern)[1:]
    now = weight(after(pattern, *change))
    jobs = {
        lambda n: exchange(shim, [(old, *change)] * n): {0: 0, 1: 1, 19: 1, 40: 1, 41: 2},
        lambda n: list_by_input(shim, [old] * n): {0: 0, 1: 1, 40: 1, 41: 2},
        lambda n: check_growth(shim, [(old, change[1])] * n): {0: 0, 1: 1, 40: 1, 41: 2},
        lambda n: carry(shim, [(old, now, arrays(rng, old, 3), True)] * n): {0: 0, 1: 1, 19: 1, 26: 1, 27: 2},
        lambda n: carry(shim, [(old, now, arrays(rng, old, 5), False)] * n): {13: 1, 14: 2},
        lambda n: carry(shim, [(old, now, [], True), (old, now, [], False)] * n): {26: 1},
    }
    for job, wanted in jobs.items():
        for number, launches in wanted.items():
            before = shim.launches
            job(number)
            assert shim.launches - before == launches


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_lists_are_those_of_the_host(scheduled, backward):
    products = [*product_cases(np.random.default_rng(3), 12), *SPECIAL.values()]
    for number, product in enumerate(products):
        held = stored(product, (FLOAT32, FLOAT16)[number % 2])
        wanted, found = held.list(scheduled, backward), tap_list(scheduled, held, backward)
        for name, ours, theirs in zip(("start", "offset", "value"), found, wanted, strict=True):
            assert np.array_equal(ours, theirs), f"{name} of {product}"
