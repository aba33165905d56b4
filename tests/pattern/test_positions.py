"""Order and choice of flat positions; the choice itself is tested where it is used, in tests/pruning."""

import pytest
import torch

from fedsparse.pattern import positions
from fedsparse.pattern.positions import ascending, counted, first_in_order, selectable


@pytest.mark.parametrize("size", [1, 2, 2048, 2049, 1 << 22, (1 << 22) + 1, (1 << 31) - 1])
def test_ascending_equals_a_stable_sort(size, generator):
    for count in (0, 1, 3000):
        positions = torch.randint(0, size, (count,), generator=generator)
        given = positions.clone()
        ordered, before = ascending(positions, size)
        expected = positions.sort(stable=True)
        assert torch.equal(ordered, expected.values)
        assert torch.equal(before, expected.indices)
        assert torch.equal(positions, given)


def test_ascending_reads_any_strides():
    assert ascending(torch.tensor([[5, 0], [3, 0], [4, 0]])[:, 0], 6)[0].tolist() == [3, 4, 5]


def test_counted(generator):
    for size in (0, 1, 100, 100_003):
        mask = torch.rand(size, generator=generator) < 0.3
        assert counted(mask) == int(mask.sum())


def test_selectable_scores():
    assert selectable(torch.ones(2))
    assert not selectable(torch.ones(2).double())
    assert not selectable(torch.ones(2, device="meta"))


def test_first_in_order_reports_nans():
    scores = torch.tensor([float("nan"), 2.0, -3.0])
    assert first_in_order(scores, 1, 3, None, "largest")[1] == 1
    found, nans = first_in_order(scores, 1, 2, torch.tensor([False, True, True]), "largest_magnitude")
    assert (found.tolist(), nans) == ([2], 0)


# ---- of several weights at once, where the kernels take them
def layers_of(where, generator, dtype=torch.float32):
    """With ties, zeros of both signs and infinities; one is empty."""
    layers = [torch.randint(-9, 10, (n,), generator=generator).to(dtype) for n in (40, 0, 700, 1)]
    layers[2][:4] = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf])
    return [layer.to(where) for layer in layers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_highest_of_each(where, dtype, generator):
    layers, counts = layers_of(where, generator, dtype), [7, 0, 300, 1]
    found, unordered = positions.highest_of_each(layers, counts)
    assert not unordered
    for numbers, layer, count in zip(found, layers, counts, strict=True):
        assert torch.equal(numbers, layer.sort(descending=True, stable=True).indices[:count].sort().values)
    layers[2][5] = torch.nan
    assert positions.highest_of_each(layers, counts)[1]


def test_mirrored_magnitudes(where, generator):
    """Ascending where those of the layers descend, ties where they tie, denormal numbers told apart."""
    layers = [*layers_of(where, generator), torch.tensor([1e-45, 3e-45, torch.nan, 3.4e38]).to(where)]
    for layer, mirrored in zip(layers, positions.mirrored(layers), strict=True):
        assert torch.equal(mirrored.isnan(), layer.isnan())
        there, found = (t.abs().double()[~layer.isnan()] for t in (layer, mirrored))
        assert torch.equal(there[:, None] < there, found[:, None] > found)


def test_what_numbers_stand_for_in_each_list(where, generator):
    lists = [torch.randperm(n, generator=generator).to(where) for n in (5, 9, 3)]
    numbers = [torch.tensor(some, dtype=torch.int64).to(where) for some in ([4, 0], [], [1, 1, 2])]
    found = positions.taken_of_each(lists, numbers)
    assert all(torch.equal(ours, one[some]) for ours, one, some in zip(found, lists, numbers, strict=True))


def test_each_list_in_order(where, generator):
    lists = [torch.randperm(n, generator=generator).to(where) for n in (50, 0, 7)]
    entries = [torch.randn(len(one), generator=generator).to(where) for one in lists]
    ordered, its, repeated = positions.ascending_of_each(lists, entries, [50, 4, 9])
    assert not repeated
    for one, given, found, follow in zip(lists, entries, ordered, its, strict=True):
        values, order = one.sort()
        assert torch.equal(found, values)
        assert torch.equal(follow, given[order])
    lists[2][1] = lists[2][3]
    assert positions.ascending_of_each(lists, entries, [50, 4, 9])[2]
