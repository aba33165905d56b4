import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.wire import IndexSet, SparseVector


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
