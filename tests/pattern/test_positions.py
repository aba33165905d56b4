"""Order and choice of flat positions; the choice itself is tested where it is used, in tests/pruning."""

import pytest
import torch

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
