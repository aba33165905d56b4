"""Masks that keep the highest scores, of single weights and of larger units."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, parse
from fedsparse.pruning import globally, layerwise


def test_layerwise_keeps_each_count():
    scores = {"a": torch.tensor([[1.0, 3.0], [3.0, 2.0]]), "b": torch.tensor([[9.0, 8.0]])}
    masks = layerwise(scores, {"a": 1, "b": 2})
    assert torch.equal(masks["a"], torch.tensor([[False, True], [False, False]]))
    assert torch.equal(masks["b"], torch.tensor([[True, True]]))
    with pytest.raises(PatternError, match="names must agree"):
        layerwise(scores, {"a": 1})


def test_magnitude_example_keeps_the_first_two():
    assert layerwise({"w": torch.tensor([[1.0, 2.0, 0.5]])}, {"w": 2})["w"].tolist() == [[True, True, False]]


def test_globally_takes_the_highest_of_all_after_one_each():
    scores = {
        "a": torch.tensor([[9.0, 8.0, 7.0]]),
        "b": torch.tensor([[1.0, 2.0]]),
        "c": torch.tensor([[7.0, 7.0]]),
    }
    masks = globally(scores, 5)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "a": [[True, True, True]],  # the tie at 7 goes to the earlier weight ...
        "b": [[False, True]],
        "c": [[True, False]],  # ... whose own first 7 it keeps anyway
    }
    assert [int(m.sum()) for m in globally(scores, 3).values()] == [1, 1, 1]
    assert [int(m.sum()) for m in globally(scores, 7).values()] == [3, 2, 2]
    assert [int(m.sum()) for m in globally(scores, 2, at_least=0).values()] == [2, 0, 0]
    assert [int(m.sum()) for m in globally(scores, 7, at_least=5).values()] == [3, 2, 2]


def test_globally_refuses_totals_that_do_not_fit():
    scores = {"a": torch.ones(1, 3), "b": torch.ones(1, 2)}
    for total in (1, 6):
        with pytest.raises(PatternError, match=f"cannot keep {total} positions"):
            globally(scores, total)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(3, 30))
def test_globally_keeps_exactly_total(seed, total):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.randint(0, 4, (2, size), generator=generator).float()
        for name, size in [("a", 3), ("b", 5), ("c", 7)]
    }
    masks = globally(scores, total)
    assert sum(int(mask.sum()) for mask in masks.values()) == total
    assert all(mask.any() for mask in masks.values())
    kept = torch.cat([scores[n][masks[n]] for n in scores])
    pruned = torch.cat([scores[n][~masks[n]] for n in scores])
    if all(int(mask.sum()) > 1 for mask in masks.values()) and pruned.numel():
        assert kept.min() >= pruned.max()


# ---- larger units, ranked by their mean
def test_units_of_the_highest_mean_are_kept():
    scores = {"w": torch.tensor([[1.0, 5.0, 2.0], [4.0, 1.0, 2.0], [9.0, 0.0, 3.0]])}
    kept = layerwise(scores, {"w": 4}, parse("vector:2"))["w"]
    # Means 2.5, 3, 2 and, of the last row alone, 9, 0, 3: the units of 9, 3, 3 make 4 weights.
    assert kept.tolist() == [[False, True, False], [False, True, False], [True, False, True]]
    assert layerwise(scores, {"w": 3}, parse("channel"))["w"].sum(1).tolist() == [0, 0, 3]
    assert layerwise(scores, {"w": 8}, parse("channel"))["w"].sum(1).tolist() == [3, 0, 3]


def test_nm_keeps_its_share_of_every_run_whatever_the_count():
    scores = {"w": torch.tensor([[1.0, 1.0, 2.0, 0.0, 9.0, 8.0], [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]])}
    for chosen in (layerwise(scores, {"w": 0}, parse("nm:2:4")), globally(scores, 99, granularity=parse("nm:2:4"))):
        assert chosen["w"].int().tolist() == [[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]]


def test_the_rest_of_all_units_goes_to_what_fits():
    scores = {"a": torch.tensor([[9.0, 9.0, 9.0], [8.0, 8.0, 8.0]]), "b": torch.tensor([[1.0], [3.0], [2.0]])}
    found = globally(scores, 6, granularity=parse("channel"))
    # One channel each takes 4; the next best has 3 weights and does not fit into 2, smaller ones do.
    assert found["a"].int().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found["b"].int().tolist() == [[1], [1], [1]]
    assert globally(scores, 7, granularity=parse("channel"))["a"].int().tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(PatternError, match="cannot keep 3 positions in all: 2 weights keep at least 1 of their units"):
        globally(scores, 3, granularity=parse("channel"))


@pytest.mark.parametrize("granularity", ["vector:4", "block:3", "channel"])
@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3, 3), (8, 2, 1, 1)])
def test_odd_shapes_give_whole_units_within_the_count(granularity, shape, generator):
    scores, unit = {"w": torch.randn(shape, generator=generator)}, parse(granularity)
    size = unit.tiling(shape).size
    for count in (size, scores["w"].numel() // 2, scores["w"].numel()):
        for chosen in (layerwise(scores, {"w": count}, unit), globally(scores, count, granularity=unit)):
            assert count - size < Pattern.from_mask(chosen["w"], unit).nnz <= count
