import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern
from fedsparse.pruning import swap


def pattern_of(bits: str) -> Pattern:
    return Pattern.from_mask(torch.tensor([[bit == "1" for bit in row] for row in bits.split("/")]))


def bits_of(pattern: Pattern) -> str:
    return "/".join("".join("1" if bit else "0" for bit in row) for row in pattern.mask().tolist())


def swapped(bits, values, candidates, scores, count):
    candidates = torch.tensor(candidates, dtype=torch.int64)
    return bits_of(swap(pattern_of(bits), torch.tensor(values), candidates, scores=torch.tensor(scores), count=count))


def test_smallest_weight_makes_room_for_largest_gradient():
    assert swapped("1100", [0.1, 1.0], [2, 3], [2.0, 3.0], 1) == "0101"
    assert swapped("11/00", [-1.0, 0.1], [3, 2], [2.0, -3.0], 1) == "10/10"


def test_ties_go_to_the_lowest_position():
    # values 0.5 and -0.5 tie for the drop, and the scores tie for growth in whatever order they come
    assert swapped("110011", [0.5, -0.5, 1.0, 2.0], [3, 2], [1.0, -1.0], 1) == "011011"


def test_fewer_candidates_swap_fewer():
    assert swapped("111000", [3.0, 1.0, 2.0], [4], [1.0], 2) == "101010"
    assert swapped("111000", [3.0, 1.0, 2.0], [], [], 2) == "111000"


def test_the_last_weight_is_never_dropped():
    assert swapped("1000", [0.1], [1, 2], [5.0, 6.0], 1) == "1000"
    assert swapped("1100", [0.1, 0.2], [2, 3], [5.0, 6.0], 2) == "0101"


def test_nothing_to_swap_returns_the_same_pattern():
    pattern = pattern_of("1100")
    assert swap(pattern, torch.ones(2), torch.tensor([2]), scores=torch.ones(1), count=0) is pattern


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 59), st.integers(0, 70))
def test_against_the_dense_definition(seed, nnz, count):
    generator = torch.Generator().manual_seed(seed)
    size = 60
    kept = torch.randperm(size, generator=generator)[:nnz].sort().values
    pattern = Pattern.from_flat((6, 5, 2, 1), kept)
    weight = torch.randint(-3, 4, (size,), generator=generator).float()
    gradient = torch.randint(-3, 4, (size,), generator=generator).float()
    pruned = sorted(set(range(size)) - set(kept.tolist()))
    shuffled = torch.tensor(pruned)[torch.randperm(len(pruned), generator=generator)]
    moved = min(count, nnz - 1, len(pruned))
    dropped = sorted(kept.tolist(), key=lambda i: abs(weight[i]))[:moved]
    grown = sorted(pruned, key=lambda i: -abs(gradient[i]))[:moved]
    new = swap(pattern, weight[kept], shuffled, scores=gradient[shuffled], count=count)
    assert new.shape == pattern.shape
    assert new.nnz == nnz
    assert set(new.flat.tolist()) == set(kept.tolist()) - set(dropped) | set(grown)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ascending", [False, True])
def test_a_whole_layer_is_the_same_for_any_number_of_threads(ties, ascending, generator):
    mask = torch.rand((128, 64, 3, 3), generator=generator) < 0.5
    pattern, pruned = Pattern.from_mask(mask), (~mask).reshape(-1).nonzero().squeeze(1)
    candidates = pruned[torch.randperm(len(pruned), generator=generator)[:20_000]]
    if ascending:
        candidates = candidates.sort().values
    values, scores = torch.randn(pattern.nnz, generator=generator), torch.randn(20_000, generator=generator)
    if ties:
        values, scores = values.round(), scores.round()
    count = 7000
    order = candidates.argsort()
    best = torch.argsort(scores[order].abs(), descending=True, stable=True)[:count]
    expected = mask.reshape(-1).clone()
    expected[pattern.flat[torch.argsort(values.abs(), stable=True)[:count]]] = False
    expected[candidates[order][best]] = True
    given = candidates.clone()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        new = swap(pattern, values, candidates, scores=scores, count=count)
        assert torch.equal(new.mask().reshape(-1), expected)
    assert torch.equal(candidates, given)  # sorted elsewhere


def test_the_lowest_wrong_candidate_is_named(generator):
    pattern = Pattern.from_mask(torch.arange(60_000).view(300, 200) % 2 == 0)
    odd = torch.arange(1, 60_000, 2)
    candidates = torch.cat([odd, torch.tensor([5000, 46, 30_002])])[torch.randperm(30_003, generator=generator)]
    with pytest.raises(PatternError, match="candidate 46 is kept already"):
        swap(pattern, torch.ones(30_000), candidates, scores=torch.ones(30_003), count=1)
    candidates = torch.cat([odd, odd[[700, 200, 900]]])[torch.randperm(30_003, generator=generator)]
    with pytest.raises(PatternError, match="candidate 401 is given more than once"):
        swap(pattern, torch.ones(30_000), candidates, scores=torch.ones(30_003), count=1)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([0], "candidate 0 is kept already"),
        ([4], r"must lie in \[0, 4\)"),
        ([-1], "must lie in"),
        ([2, 3, 2], "candidate 2 is given more than once"),
    ],
)
def test_candidates_that_cannot_grow(candidates, message):
    with pytest.raises(PatternError, match=message):
        swapped("1100", [1.0, 2.0], candidates, [1.0] * len(candidates), 1)


def test_sizes_and_numbers_are_checked():
    with pytest.raises(PatternError, match=r"values of shape \(2,\)"):
        swapped("1100", [1.0], [2], [1.0], 1)
    with pytest.raises(PatternError, match="one score for each of 1"):
        swapped("1100", [1.0, 2.0], [2], [1.0, 2.0], 1)
    with pytest.raises(PatternError, match="negative"):
        swapped("1100", [1.0, 2.0], [2], [1.0], -1)
    with pytest.raises(PatternError, match="NaN"):
        swapped("1100", [1.0, float("nan")], [2], [1.0], 1)
    with pytest.raises(PatternError, match="NaN"):
        swapped("1100", [1.0, 2.0], [2], [float("nan")], 1)
    with pytest.raises(PatternError, match="int64"):
        swap(
            pattern_of("1100"),
            torch.ones(2),
            torch.tensor([2], dtype=torch.int32),
            scores=torch.ones(1),
            count=1,
        )
