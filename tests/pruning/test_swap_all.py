"""Several weights swapped at once, in main memory and where the CUDA kernels find what to drop in one launch."""

import pytest
import torch

from fedsparse import _native
from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import parse
from fedsparse.pruning import smallest, swap, swap_all, top

SHAPES = {"a": (12, 10, 3, 3), "b": (20, 33), "c": (5, 4), "nothing": (4, 4)}
COUNTS = {"a": 60, "b": 40, "c": 2, "nothing": 0}


def drawn(generator, granularity="element"):
    """Patterns, values, and candidates with scores, in main memory."""
    patterns, values, candidates = {}, {}, {}
    for name, shape in SHAPES.items():
        unit, mask = parse(granularity), torch.zeros(shape, dtype=torch.bool)
        if unit.share is None:
            tiling = unit.tiling(shape)
            mask = tiling.spread(torch.rand(tiling.count, generator=generator) < 0.4).view(shape)
        else:
            mask.view(-1)[unit.fixed_choice(torch.rand(shape, generator=generator))] = True
        patterns[name] = Pattern.from_mask(mask, unit)
        values[name] = torch.randn(patterns[name].nnz, generator=generator)
        pruned = (~mask).view(-1).nonzero().squeeze(1)
        chosen = pruned[torch.randperm(len(pruned), generator=generator)[: len(pruned) // 2]]
        candidates[name] = chosen, torch.randn(len(chosen), generator=generator)
    return patterns, values, candidates


def by_definition(pattern, values, candidates, scores, count):
    """Single positions: the smallest |values| leave, the largest |scores| come."""
    dropped = pattern.flat[values.abs().sort(stable=True).indices[:count]]
    ordered, order = candidates.sort()
    grown = ordered[scores[order].abs().sort(descending=True, stable=True).indices[:count]]
    mask = pattern.mask().view(-1).clone()
    mask[dropped], mask[grown] = False, True
    return Pattern.from_mask(mask.view(pattern.shape))


def test_swaps_where_the_patterns_lie(where, generator):
    patterns, values, candidates = drawn(generator)
    found = swap_all(
        {name: pattern.to(where) for name, pattern in patterns.items()},
        {name: kept.to(where) for name, kept in values.items()},
        {name: tuple(t.to(where) for t in pair) for name, pair in candidates.items()},
        COUNTS,
    )
    for name, pattern in patterns.items():
        assert found[name].column.device == torch.device(where)
        assert found[name] == by_definition(pattern, values[name], *candidates[name], COUNTS[name]), name


@pytest.mark.parametrize("granularity", ["vector:4", "block:2", "channel", "nm:1:2"])
def test_whole_units_are_swapped_where_the_patterns_lie(where, granularity, generator, monkeypatch):
    """As in main memory, which is not asked for anything."""
    patterns, values, candidates = drawn(generator, granularity)
    with monkeypatch.context() as patch:
        patch.setattr(_native, "on_device", lambda _: False)
        wanted = swap_all(patterns, values, candidates, COUNTS)
    there = (
        {name: pattern.to(where) for name, pattern in patterns.items()},
        {name: kept.to(where) for name, kept in values.items()},
        {name: tuple(t.to(where) for t in pair) for name, pair in candidates.items()},
    )
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", None)
        found = swap_all(*there, COUNTS)
    assert found == wanted
    assert found["a"] != patterns["a"]
    assert all(pattern.column.device == torch.device(where) for pattern in found.values())


def test_granularities_of_every_kind_in_one_call(where, generator, monkeypatch):
    """Single positions, units of one size, broken ones and pools; two weights swap nothing."""
    units = {"a": "vector:4", "b": "block:5", "c": "element", "nothing": "nm:1:2"}
    drawings = {name: [part[name] for part in drawn(generator, unit)] for name, unit in units.items()}
    drawings["other"], counts = [part["a"] for part in drawn(generator, "vector:3")], {**COUNTS, "other": 60, "last": 0}
    drawings["last"] = [part["a"] for part in drawn(generator, "vector:2")]
    patterns, values, candidates = ({name: parts[i] for name, parts in drawings.items()} for i in range(3))
    with monkeypatch.context() as patch:
        patch.setattr(_native, "on_device", lambda _: False)
        wanted = {
            name: swap(pattern, values[name], candidates[name][0], scores=candidates[name][1], count=counts[name])
            for name, pattern in patterns.items()
        }
    found = swap_all(
        {name: pattern.to(where) for name, pattern in patterns.items()},
        {name: kept.to(where) for name, kept in values.items()},
        {name: tuple(t.to(where) for t in pair) for name, pair in candidates.items()},
        counts,
    )
    assert found == wanted
    assert [name for name in found if found[name] == patterns[name]] == ["nothing", "last"]


def test_one_launch_for_all(binding, where, generator, monkeypatch):
    """What is dropped and grown of all weights is asked for once."""
    if where != "cpu":
        pytest.skip("counts calls of the extension, which is patched for main memory only")
    asked, launch = [], binding.cuda_smallest
    monkeypatch.setattr(binding, "cuda_smallest", lambda *arguments: asked.append(arguments[1]) or launch(*arguments))
    swap_all(*drawn(generator), COUNTS)
    assert asked == [6]


@pytest.mark.parametrize("granularity", ["element", "vector:4"])
def test_equals_one_swap_after_the_other(granularity, generator):
    patterns, values, candidates = drawn(generator, granularity)
    found = swap_all(patterns, values, candidates, COUNTS)
    for name, (positions, scores) in candidates.items():
        one = swap(patterns[name], values[name], positions, scores=scores, count=COUNTS[name])
        assert one == found[name]
    assert found["a"] != patterns["a"]


def test_the_smallest_of_each(where, generator):
    """As `top` finds them; other types of numbers too."""
    layers = [torch.randn(n, generator=generator) for n in (3, 9000, 1)]
    layers[1][::7] = 0.25  # ties
    for dtype in (torch.float32, torch.float64):
        given = [layer.to(where, dtype) for layer in layers]
        for found, layer, count in zip(smallest(given, [2, 4000, 0]), layers, [2, 4000, 0], strict=True):
            assert torch.equal(found.cpu(), layer.abs().sort(stable=True).indices[:count].sort().values)
    assert smallest([], []) == []


def test_refuses_what_has_no_order(where):
    values = torch.tensor([1.0, torch.nan, 2.0]).to(where)
    with pytest.raises(PatternError, match="1 of 3 scores are NaN and have no order"):
        smallest([values], [1])
    with pytest.raises(PatternError, match="cannot take the 4 highest of 3 scores"):
        smallest([values], [4])


def test_without_kernels_each_layer_is_searched_by_itself(generator, monkeypatch):
    monkeypatch.setattr(_native, "on_device", lambda _: False)
    values = torch.randn(50, generator=generator)
    assert torch.equal(smallest([values], [7])[0], top(values, 7, order="smallest_magnitude"))
