import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import PatternError
from fedsparse.pruning import top

SCORES = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1.0, 1.5, float("inf"), float("-inf")]), min_size=1, max_size=40)


@settings(deadline=None)
@given(SCORES, st.data())
def test_top_is_the_head_of_a_stable_sort(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    expected = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])
    found = top(torch.tensor(scores), k)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@settings(deadline=None)
@given(SCORES, st.data())
def test_top_among_some_positions(scores, data):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    allowed = [i for i in range(len(scores)) if among[i]]
    k = data.draw(st.integers(0, len(allowed)))
    expected = sorted(sorted(allowed, key=lambda i: -scores[i])[:k])
    assert top(torch.tensor(scores), k, among=torch.tensor(among)).tolist() == expected


ORDERS = ["largest", "largest_magnitude", "smallest_magnitude"]
INF, TINY = float("inf"), 2.0**-149  # TINY is the smallest denormal


def ranked(scores, order):
    return {"largest": scores, "largest_magnitude": scores.abs(), "smallest_magnitude": -scores.abs()}[order]


def sorted_top(scores, k, order, among=None):
    """The definition: head of a stable descending sort."""
    allowed = torch.arange(scores.numel()) if among is None else among.reshape(-1).nonzero().squeeze(1)
    best = torch.argsort(ranked(scores.reshape(-1)[allowed], order), descending=True, stable=True)[:k]
    return allowed[best].sort().values


def batches_of_scores(size, generator):
    normal = torch.randn(size, generator=generator)
    few = torch.tensor([0.0, -0.0, 1.0, -1.0, INF, -INF, TINY, -TINY, 3 * TINY, 1e-38, -2.0])
    yield normal
    yield few[torch.randint(0, len(few), (size,), generator=generator)]
    yield torch.randint(-3, 4, (size,), generator=generator).float()
    yield torch.zeros(size)
    yield torch.full((size,), -1.5)
    yield normal.sort().values
    yield -normal.sort().values
    yield normal * TINY * 100
    yield torch.where(torch.rand(size, generator=generator) < 0.95, 0.0, normal)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", [range(1, 71), [5000], [100_000]], ids=["small", "medium", "large"])
def test_top_equals_a_stable_sort(order, sizes, generator):
    for size in sizes:
        among = torch.rand(size, generator=generator) < 0.4
        for scores in batches_of_scores(size, generator):
            for k in {0, 1, size // 100, size // 9, size // 2, size - 1, size}:
                assert torch.equal(top(scores, k, order=order), sorted_top(scores, k, order))
            for k in {0, int(among.sum()) // 50, int(among.sum())}:
                found = top(scores, k, among=among, order=order)
                assert torch.equal(found, sorted_top(scores, k, order, among))


@pytest.mark.parametrize("order", ORDERS)
def test_top_is_the_same_for_any_number_of_threads(order, generator):
    size = 400_001
    among = torch.rand(size, generator=generator) < 0.7
    for scores in (torch.randn(size, generator=generator), torch.randn(size, generator=generator).round()):
        for k in (5, size // 100, size // 3):
            torch.set_num_threads(1)
            alone, alone_among = top(scores, k, order=order), top(scores, k, among=among, order=order)
            assert torch.equal(alone, sorted_top(scores, k, order))
            assert torch.equal(alone_among, sorted_top(scores, k, order, among))
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(top(scores, k, order=order), alone)
                assert torch.equal(top(scores, k, among=among, order=order), alone_among)


def test_top_survives_a_sample_that_misleads(generator):
    # Scores that repeat with the period of the sample's stride: it sees only the highest, or only the lowest.
    size = 100_000
    step = (size // (size // 64)) | 1
    for sign in (1.0, -1.0):
        scores = torch.rand(size, generator=generator)
        scores[::step] += 10 * sign
        for k in (10, 1000, 5000):
            assert torch.equal(top(scores, k), sorted_top(scores, k, "largest"))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_top_of_any_floats_in_any_order(data):
    scores = torch.tensor(data.draw(st.lists(st.floats(width=32, allow_nan=False), max_size=200)))
    order, k = data.draw(st.sampled_from(ORDERS)), data.draw(st.integers(0, scores.numel()))
    assert torch.equal(top(scores, k, order=order), sorted_top(scores, k, order))
    assert torch.equal(top(scores.double(), k, order=order), sorted_top(scores, k, order))


@pytest.mark.parametrize("size", [5, 100_000])
def test_top_counts_nans_wherever_they_are(size, generator):
    scores, among = torch.randn(size, generator=generator), torch.ones(size, dtype=torch.bool)
    scores[[1, size - 1]] = float("nan")
    scores[2] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a negative NaN
    among[2] = False
    for order in ORDERS:
        for k in (0, 1, size // 3):
            with pytest.raises(PatternError, match=f"3 of {size} scores are NaN"):
                top(scores, k, order=order)
            with pytest.raises(PatternError, match=f"2 of {size - 1} scores are NaN"):
                top(scores, k, among=among, order=order)


def test_top_reads_views_and_tracked_scores(generator):
    scores = torch.randn(60, 40, generator=generator)
    for view in (scores.T, scores[::2, 1:], scores[:, ::3]):
        assert torch.equal(top(view, 20), sorted_top(view, 20, "largest"))
    assert torch.equal(top(scores.requires_grad_(), 20), sorted_top(scores.detach(), 20, "largest"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_top_takes_flat_positions_of_any_shape_and_dtype(dtype):
    scores = torch.tensor([[1, 5, 2], [5, 0, 5]], dtype=dtype)
    assert top(scores, 2).tolist() == [1, 3]
    assert top(scores.T, 2).tolist() == [1, 2]  # flat positions of the transposed matrix


def test_top_refuses_what_has_no_answer():
    scores = torch.tensor([1.0, float("nan"), 3.0])
    with pytest.raises(PatternError, match="1 of 3 scores are NaN"):
        top(scores, 1)
    assert top(scores, 1, among=torch.tensor([True, False, True])).tolist() == [2]
    for k in (-1, 4):
        with pytest.raises(PatternError, match=f"the {k} highest of 3"):
            top(torch.ones(3), k)
    with pytest.raises(PatternError, match="bool mask of shape"):
        top(torch.ones(3), 1, among=torch.ones(2, dtype=torch.bool))
    with pytest.raises(PatternError, match="bool mask of shape"):
        top(torch.ones(3), 1, among=torch.tensor([0, 1, 1]))
