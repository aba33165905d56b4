"""Scores and choices of whole units, by hand and against definitions unit by unit."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, parse
from fedsparse.pruning import (
    exchange,
    highest,
    kept_units,
    likewise,
    magnitude,
    magnitudes,
    places_of,
    refilled,
    replaceable,
    swap,
    whole,
)
from fedsparse.pruning.units import fitting

SHAPES = [(5, 3), (8, 8, 1, 1), (6, 5, 3, 3), (7, 2, 2, 1), (4, 1)]
GRANULARITIES = ["element", "vector:4", "vector:3", "block:2", "nm:2:4", "nm:1:3", "channel"]


def pattern_of(text, granularity):
    rows = [[bit == "1" for bit in row] for row in text.split("/")]
    return Pattern.from_mask(torch.tensor(rows), parse(granularity))


def bits_of(pattern):
    return "/".join("".join("1" if bit else "0" for bit in row) for row in pattern.mask().tolist())


def some_pattern(shape, granularity, generator, share=0.5):
    """About a share of the units, one at least; of pools with a fixed number, that number."""
    granularity = parse(granularity)
    tiling, scores = granularity.tiling(shape), torch.rand(shape, generator=generator)
    if granularity.share is not None:
        return Pattern.from_flat(shape, granularity.fixed_choice(scores), granularity)
    units = torch.randperm(tiling.count, generator=generator)[: max(1, int(share * tiling.count))]
    return Pattern.from_flat(shape, tiling.positions(units), granularity)


# ---- numbers by hand
def test_closest_whole_units():
    assert [whole(k, 4) for k in (0, 1, 2, 3, 5, 6)] == [0, 0, 1, 1, 1, 2]
    assert [whole(k, 1) for k in range(3)] == [0, 1, 2]


def test_a_unit_has_the_root_mean_square_of_its_values():
    pattern = pattern_of("10/10/01", "vector:2")  # positions 0, 2 and 5; the last row is a unit by itself
    assert kept_units(pattern).tolist() == [0, 3]
    assert magnitudes(pattern, torch.tensor([3.0, -4.0, -2.0])).tolist() == [12.5**0.5, 2.0]
    weight = torch.tensor([[3.0, 1.0], [-4.0, 1.0], [0.0, -2.0]])
    expected = torch.tensor([[12.5**0.5, 1.0], [12.5**0.5, 1.0], [0.0, 2.0]], dtype=torch.float64)
    assert torch.equal(magnitude({"w": weight}, parse("vector:2"))["w"], expected)


def swapped(text, granularity, values, candidates, scores, count):
    pattern = pattern_of(text, granularity)
    new = swap(pattern, torch.tensor(values), torch.tensor(candidates), scores=torch.tensor(scores), count=count)
    assert new.nnz == pattern.nnz
    return bits_of(new)


def test_vectors_are_swapped_whole():
    # columns 0 and 1 are kept with root mean squares 1 and 3 / sqrt 2; of 2 and 3 the largest sum of squares grows
    values, candidates = [1.0, 0.0, 1.0, 3.0], [2, 3, 6, 7]
    assert swapped("1100/1100", "vector:2", values, candidates, [2.0, 2.5, 2.0, 0.0], 2) == "0110/0110"
    assert swapped("1100/1100", "vector:2", values, candidates, [2.0, 2.5, 1.0, 0.0], 2) == "0101/0101"


def test_counts_are_rounded_to_whole_units():
    arguments = ([1.0, 0.0, 1.0, 3.0], [2, 3, 6, 7], [2.0, 2.5, 2.0, 0.0])
    assert swapped("1100/1100", "vector:2", *arguments, 0) == "1100/1100"
    assert swapped("1100/1100", "vector:2", *arguments, 1) == "0110/0110"
    assert swapped("1100/1100", "vector:2", *arguments, 4) == "0110/0110", "one unit stays"


def test_a_missing_score_counts_as_zero():
    values = [1.0, 1.0, 2.0, 2.0]
    assert swapped("1010/1010", "vector:2", values, [1, 3, 7], [3.0, 2.5, 2.5], 2) == "0011/0011"


def test_units_of_the_edge_change_places_among_themselves():
    # The edge, row 2, keeps one of its own although its weight is the smallest and its gradient too.
    values = [5.0, 6.0, 5.0, 6.0, 0.1]
    assert swapped("1100/1100/1000", "vector:2", values, [2, 6, 9], [1.0, 1.0, 0.5], 2) == "0110/0110/1000"
    assert swapped("1100/1100/1000", "vector:2", values, [2, 6, 9], [1.0, 1.0, 9.0], 2) == "1100/1100/0100"


def test_nm_swaps_inside_its_runs():
    values = [1.0, 2.0, 0.1, 0.2]
    assert swapped("11001100", "nm:2:4", values, [2, 6, 7], [9.0, 1.0, 2.0], 1) == "01101100"
    assert swapped("11001100", "nm:2:4", values, [2, 6, 7], [9.0, 1.0, 2.0], 2) == "01100101"


def test_channels_and_blocks():
    assert swapped("11/00/11", "channel", [1.0, 1.0, 2.0, 2.0], [2, 3], [0.1, 0.0], 2) == "00/11/11"
    values = [1.0] * 4 + [2.0] * 4
    assert swapped("1100/1100/0011/0011", "block:2", values, [2, 12, 13], [0.1, 0.1, 0.1], 4) == "0000/0000/1111/1111"


def test_what_does_not_fit_is_passed_over():
    scores, sizes = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([4, 4, 2, 1])
    assert fitting(scores, sizes, 7).tolist() == [0, 2, 3]
    assert fitting(scores, sizes, 8).tolist() == [0, 1]
    assert fitting(scores, sizes, 0).tolist() == []
    assert fitting(scores, sizes, 100).tolist() == [0, 1, 2, 3]


# ---- against definitions
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 2)), max_size=20), st.integers(0, 8), st.data())
def test_highest_of_each_pool(entries, count, data):
    most = data.draw(st.lists(st.integers(0, 5), min_size=3, max_size=3))
    left, expected = list(most), []
    for i in sorted(range(len(entries)), key=lambda i: -entries[i][0]):
        if left[entries[i][1]] and len(expected) < count:
            left[entries[i][1]] -= 1
            expected.append(i)
    scores, pools = (torch.tensor([e[k] for e in entries], dtype=d) for k, d in ((0, torch.float32), (1, torch.int64)))
    assert highest(scores, count, pools, torch.tensor(most)).tolist() == sorted(expected)


def test_scores_without_order_are_refused():
    with pytest.raises(PatternError, match="1 of 2 scores are NaN"):
        highest(torch.tensor([1.0, float("nan")]), 1, torch.tensor([0, 1]), torch.tensor([1, 1]))


@pytest.mark.parametrize(("granularity", "shape"), list(itertools.product(GRANULARITIES, SHAPES)))
def test_whatever_moves_is_made_of_whole_units_and_keeps_its_number(granularity, shape, generator):
    pattern = some_pattern(shape, granularity, generator)
    units, kind = parse(granularity).tiling(shape).count, parse(granularity)

    def pools(some):
        return torch.bincount(kind.pool_of(shape, kept_units(some)), minlength=kind.pools(shape)).tolist()

    values = torch.randn(pattern.nnz, generator=generator)
    pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)
    gradients = torch.randn(len(pruned), generator=generator)
    for count in (1, 4, pattern.nnz):
        new = swap(pattern, values, pruned, scores=gradients, count=count)
        kind.check(shape, new.flat)
        assert pools(new) == pools(pattern)
        changed = len(set(kept_units(pattern).tolist()) - set(kept_units(new).tolist()))
        assert changed <= whole(count, kind.tiling(shape).size)
    best = likewise(pattern, torch.arange(units), torch.rand(units, generator=generator))
    kind.check(shape, best.flat)
    assert pools(best) == pools(pattern)
    # Dropped first and grown later, what is gone comes back by others of its pool.
    drop = torch.rand(len(kept_units(pattern)), generator=generator)
    places = replaceable(pattern, drop, 3)
    gone = kept_units(pattern)[places]
    thinned = pattern.exchanged(places_of(pattern, places), torch.empty(0, dtype=torch.int64))
    again = refilled(thinned, pattern, pruned, gradients)
    kind.check(shape, again.flat)
    assert pools(again) == pools(pattern)
    assert not set(kept_units(again).tolist()) & set(gone.tolist())


def test_exchange_follows_its_scores():
    pattern = pattern_of("1100/1100/0011/0011", "block:2")
    new = exchange(pattern, torch.tensor([0.0, 1.0]), torch.tensor([1, 2]), torch.tensor([0.5, 0.5]), 1)
    assert bits_of(new) == "1111/1111/0000/0000"
