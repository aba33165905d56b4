import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.wire import IndexSet, SignMap, SparseVector


def test_indices_and_values_are_checked():
    vector = SparseVector(10, torch.tensor([0, 9]), torch.tensor([1.0, -2.0]))
    assert vector.size == 10
    with pytest.raises(PatternError, match=r"float32 of shape \(2,\)"):
        SparseVector(10, torch.tensor([0, 9]), torch.tensor([1.0]))
    with pytest.raises(PatternError, match="float32"):
        SparseVector(10, torch.tensor([0, 9]), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("indices", [[1, 1], [2, 1], [-1, 2], [3, 10]])
def test_positions_ascend_inside_the_size(indices):
    with pytest.raises(PatternError, match=r"ascend without repetition inside \[0, 10\)"):
        IndexSet(10, torch.tensor(indices))


def test_types_and_sizes_of_positions():
    assert IndexSet(0, torch.empty(0, dtype=torch.int64)).size == 0
    with pytest.raises(PatternError, match="one-axis int64"):
        IndexSet(10, torch.tensor([1], dtype=torch.int32))
    with pytest.raises(PatternError, match="one-axis int64"):
        IndexSet(10, torch.tensor([[1]]))
    for size in (-1, 1 << 31):
        with pytest.raises(PatternError, match="size must be in"):
            IndexSet(size, torch.empty(0, dtype=torch.int64))


def test_signs_are_kept_where_they_are_not_zero():
    found = SignMap.of(torch.tensor([[0.0, -2.5, 1e-30], [-0.0, 3.0, 0.0]]))
    assert (found.size, found.indices.tolist(), found.signs.tolist()) == (6, [1, 2, 4], [-1, 1, 1])
    assert found.dense().tolist() == [0, -1, 1, 0, 1, 0]
    assert found.dense().dtype == torch.int8
    nothing = SignMap.of(torch.zeros(3))
    assert (nothing.size, nothing.dense().tolist()) == (3, [0, 0, 0])


def test_signs_are_checked():
    indices = torch.tensor([1, 2])
    with pytest.raises(PatternError, match=r"^SignMap: signs must be int8 of shape \(2,\), got torch.int8 of shape"):
        SignMap(4, indices, torch.ones(1, dtype=torch.int8))
    with pytest.raises(PatternError, match=r"int8 of shape \(2,\), got torch.float32"):
        SignMap(4, indices, torch.ones(2))
    for wrong in (0, 2, -128):
        with pytest.raises(PatternError, match="signs are 1 or -1"):
            SignMap(4, indices, torch.tensor([1, wrong], dtype=torch.int8))
