import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.wire import IndexSet, Quantized, SignMap, SparseVector


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


# ---- grids
def test_a_grid_spans_the_largest_magnitude():
    found = Quantized.of(torch.tensor([[0.0, 2.54], [-2.54, 1.27]]), torch.int8, torch.Generator())
    assert found.scale == pytest.approx(2.54)
    assert found.codes[0].tolist() == [0, 127]
    assert found.codes[1, 0] == -127
    assert found.codes[1, 1] in (63, 64)  # half a step between the two
    assert (found.limit, found.codes.shape) == (127, (2, 2))
    assert found.numbers()[0].tolist() == [0, pytest.approx(2.54)]
    assert found.numbers().dtype == torch.float64
    fine = Quantized.of(torch.tensor([1.0, -0.5, 0.25]), torch.int16, torch.Generator())
    assert torch.allclose(fine.numbers(), torch.tensor([1.0, -0.5, 0.25]).double(), rtol=0, atol=1 / 32767)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_rounding_is_unbiased_and_never_off_by_a_step(dtype):
    """40,000 draws of each of 9 numbers; five standard errors of a fair coin, the widest there is."""
    numbers = torch.tensor([-1.0, -0.7301, -0.5, -0.0039, 0.0, 0.0039, 0.25, 0.9999, 1.0]).repeat(40_000, 1)
    found = Quantized.of(numbers, dtype, torch.Generator().manual_seed(0)).numbers()
    step = 1 / torch.iinfo(dtype).max
    assert (found - numbers.double()).abs().max() < step
    assert ((found - numbers.double()).mean(0).abs() < 5 * step * 0.5 / 40_000**0.5).all()
    assert (found[:, 4] == 0).all()
    assert len(found[:, 1].unique()) == 2


def test_rounding_follows_its_generator():
    numbers = torch.randn(100, generator=torch.Generator().manual_seed(1))
    first, again, other = (
        Quantized.of(numbers, torch.int8, torch.Generator().manual_seed(seed)).codes for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("numbers", [torch.zeros(3), torch.zeros(0), torch.zeros(2, 0)])
def test_nothing_to_round(numbers):
    found = Quantized.of(numbers, torch.int8, torch.Generator())
    assert (found.scale, found.numbers().tolist()) == (0.0, numbers.tolist())


def test_grids_are_checked():
    codes = torch.tensor([1, -127], dtype=torch.int8)
    for scale in (-1.0, float("nan"), float("inf"), 4e38):
        with pytest.raises(PatternError, match="Quantized: scale must be in the range of float32 and not negative"):
            Quantized(codes, scale)
    with pytest.raises(PatternError, match=r"codes must be in \[-127, 127\], got -128"):
        Quantized(torch.tensor([-128], dtype=torch.int8), 1.0)
    with pytest.raises(PatternError, match=r"codes must be in \[-32767, 32767\], got -32768"):
        Quantized(torch.tensor([-32768], dtype=torch.int16), 1.0)
    for make in (lambda: Quantized(codes.int(), 1.0), lambda: Quantized.of(codes.float(), torch.int32, None)):
        with pytest.raises(PatternError, match=r"codes must be int8 or int16, got torch\.int32"):
            make()
    for odd in (float("nan"), float("inf")):
        with pytest.raises(PatternError, match="numbers must be finite, the largest magnitude is"):
            Quantized.of(torch.tensor([1.0, odd]), torch.int8, torch.Generator())
