import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.data import partition
from fedsparse.errors import ConfigError, DataError

SCHEMES = ["dirichlet", "iid", "quantity", "shards"]


def dealt(labels, clients, seed=0, **settings):
    return partition(np.asarray(labels), clients, generator=np.random.default_rng(seed), **settings)


def counts(labels, parts, classes):
    """Samples `(clients, classes)`."""
    return np.array([np.bincount(np.asarray(labels)[part], minlength=classes) for part in parts])


@settings(deadline=None, max_examples=60)
@given(
    scheme=st.sampled_from(SCHEMES),
    labels=st.lists(st.integers(0, 4), min_size=60, max_size=200),
    clients=st.integers(1, 6),
    min_samples=st.integers(0, 3),
    alpha=st.floats(0.5, 50),  # so that even the hardest case, one class, succeeds within some tries
    seed=st.integers(0, 2**32),
)
def test_every_sample_goes_to_one_client(scheme, labels, clients, min_samples, alpha, seed):
    asked = {"scheme": scheme, "min_samples": min_samples, "alpha": alpha}
    parts = dealt(labels, clients, seed, **asked)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(map(len, parts)) >= min_samples
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    again = dealt(labels, clients, seed, **asked)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 5), min_size=40, max_size=300),
    clients=st.integers(2, 8),
    alpha=st.floats(0.02, 5),
    seed=st.integers(0, 2**32),
)
def test_a_client_with_its_fair_share_gets_no_further_class(labels, clients, alpha, seed):
    parts = dealt(labels, clients, seed, scheme="dirichlet", alpha=alpha, min_samples=0)
    table = counts(labels, parts, 6)
    before = np.cumsum(table, axis=1) - table  # what each client held when a class was dealt
    assert not table[before >= len(labels) / clients].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_samples_make_empty_clients(scheme):
    parts = dealt(np.zeros(0, int), 3, scheme=scheme, min_samples=0)
    assert [(len(part), part.dtype) for part in parts] == [(0, np.int64)] * 3


@pytest.mark.parametrize("alpha", [1e-300, 1e300])
def test_extreme_alphas_still_deal_every_sample(alpha):
    parts = dealt(np.repeat(np.arange(10), 20), 5, scheme="dirichlet", alpha=alpha, min_samples=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_decides(scheme):
    labels = np.repeat(np.arange(10), 50)
    one, two = (dealt(labels, 5, seed, scheme=scheme) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(len(part) for part in dealt(np.zeros(23, int), 4, scheme="iid")) == [5, 6, 6, 6]


def test_shards_hold_few_labels():
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(10), 20))
    table = counts(labels, dealt(labels, 10, scheme="shards", shards_per_client=2), 10)
    # 20 shards of 10 samples cut the sorted labels exactly, so a shard has one label
    assert (table.sum(1) == 20).all()
    assert ((table > 0).sum(1) <= 2).all()
    assert set(table[table > 0]) <= {10, 20}
    single = counts(labels, dealt(labels, 10, scheme="shards", shards_per_client=1), 10)
    assert ((single == 20).sum(1) == 1).all()


def test_alpha_sets_the_skew():
    labels = np.repeat(np.arange(10), 200)

    def largest_share(alpha):
        table = counts(labels, dealt(labels, 10, scheme="dirichlet", alpha=alpha), 10)
        return (table.max(1) / table.sum(1)).mean()

    skew = [largest_share(alpha) for alpha in (1000.0, 10.0, 1.0, 0.1)]
    assert 0.1 <= skew[0] < 0.15  # 10 classes alike
    assert skew == sorted(skew)
    assert skew[-1] > 0.35


def test_dirichlet_proportions_are_those_of_the_generator():
    # One class and no full client: the cuts follow directly from the first draws after the shuffle.
    mirror = np.random.default_rng(7)
    order = mirror.permutation(100)
    shares = mirror.dirichlet([0.5, 0.5, 0.5])
    first, second = int(shares[0] * 100), int((shares[0] + shares[1]) * 100)
    parts = dealt(np.zeros(100, int), 3, 7, scheme="dirichlet", alpha=0.5, min_samples=0)
    expected = [order[:first], order[first:second], order[second:]]
    assert [part.tolist() for part in parts] == [sorted(piece.tolist()) for piece in expected]


def test_redraws_until_the_smallest_client_has_enough():
    labels = np.repeat(np.arange(10), 40)
    first_draw = dealt(labels, 8, 4, scheme="dirichlet", alpha=0.1, min_samples=0)
    assert min(map(len, first_draw)) < 20
    assert min(map(len, dealt(labels, 8, 4, scheme="dirichlet", alpha=0.1, min_samples=20))) >= 20


@pytest.mark.parametrize(
    ("labels", "asked", "message"),
    [
        (np.zeros(9, int), {"clients": 5, "scheme": "iid", "min_samples": 2}, "9 samples cannot give 5 clients at lea"),
        (np.zeros(0, int), {"clients": 1, "scheme": "dirichlet"}, "0 samples cannot give 1 clients"),
        (
            np.zeros(40, int),
            {"clients": 10, "scheme": "dirichlet", "alpha": 0.05, "min_samples": 4},
            r"no Dirichlet\(0.05\) split of 40 samples gave all 10 clients 4 samples in 1000 tries; use a larger alpha",
        ),
        (
            np.zeros(6, int),
            {"clients": 2, "scheme": "shards", "shards_per_client": 5, "min_samples": 3},
            "smallest client got . samples, min_samples asks for 3; use fewer clients or fewer shards_per_client",
        ),
    ],
)
def test_too_few_samples(labels, asked, message):
    with pytest.raises(DataError, match=message):
        dealt(labels, **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"clients": 2, "scheme": "skew"}, "unknown partition scheme 'skew'; expected one of dirichlet, iid, natural"),
        ({"clients": 0, "scheme": "iid"}, "got clients=0"),
        ({"clients": 2, "scheme": "dirichlet", "alpha": 0.0}, "alpha=0.0"),
        ({"clients": 2, "scheme": "dirichlet", "alpha": float("nan")}, "alpha=nan"),
        ({"clients": 2, "scheme": "dirichlet", "alpha": float("inf")}, "alpha=inf"),
        ({"clients": 2, "scheme": "iid", "min_samples": -1}, "min_samples=-1"),
        ({"clients": 2, "scheme": "shards", "shards_per_client": 0}, "shards_per_client=0"),
        ({"clients": 2, "scheme": "natural"}, "'natural' needs texts with stories or speakers"),
    ],
)
def test_values_out_of_range(asked, message):
    with pytest.raises(ConfigError, match=message):
        dealt(np.zeros(10, int), **asked)


# ---- stories and speakers
STORIES = np.array([3, 0, 3, 1, 2, 2, 2, 0, 9, 8])  # 2, 1, 3, 2, 1, 1 samples of 0, 1, 2, 3, 8, 9
TOKENS = np.zeros((10, 4), int)  # as labels: only their number counts


class Drawn:
    """In place of a generator: the order as it is, and given shares."""

    def __init__(self, *shares):
        self.shares = iter(shares)
        self.alphas = []

    def permutation(self, count):
        return np.arange(count)

    def dirichlet(self, alphas):
        self.alphas.append(alphas.tolist())
        return np.array(next(self.shares))


def test_quantity_skew_by_hand():
    """6 stories in shares of 1/2, 1/6 and 1/3: stories 0 to 2, story 3, and stories 8 and 9."""
    drawn = Drawn([0.5, 0.17, 0.33])
    parts = partition(TOKENS, 3, scheme="quantity", alpha=5.0, groups=STORIES, generator=drawn)
    assert [part.tolist() for part in parts] == [[1, 3, 4, 5, 6, 7], [0, 2], [8, 9]]
    assert drawn.alphas == [[5.0, 5.0, 5.0]]


def test_quantity_skew_of_samples_that_stand_alone():
    parts = partition(np.zeros(10, int), 2, scheme="quantity", generator=Drawn([0.35, 0.65]))
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]


def test_quantity_skew_is_drawn_again_until_all_hold_enough():
    drawn = Drawn([0.9, 0.1], [0.1, 0.9], [0.5, 0.5])
    parts = partition(TOKENS, 2, scheme="quantity", min_samples=4, groups=STORIES, generator=drawn)
    assert [len(part) for part in parts] == [6, 4]
    with pytest.raises(
        DataError, match=r"no Dirichlet\(0.5\) split of 2 groups of samples gave all 2 clients 4 samples"
    ):
        dealt(TOKENS, 2, scheme="quantity", min_samples=4, groups=np.array([0] * 7 + [1] * 3))


def test_small_alpha_is_more_skewed():
    sizes = [
        np.std(
            [len(part) for part in dealt(np.zeros(2000, int), 20, seed=4, scheme="quantity", alpha=a, min_samples=0)]
        )
        for a in (0.5, 5.0, 50.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    # A share of Dirichlet(5, ..., 5) over 20 clients has deviation sqrt(1/20 * 19/20 / 101).
    assert sizes[1] == pytest.approx(2000 * (0.05 * 0.95 / 101) ** 0.5, rel=0.4)


def test_stories_stay_together():
    for scheme in ("iid", "quantity"):
        parts = dealt(TOKENS, 3, scheme=scheme, groups=STORIES, alpha=5.0, min_samples=0)
        assert sorted(np.concatenate(parts).tolist()) == list(range(10))
        held = [set(STORIES[part].tolist()) for part in parts]
        assert sum(map(len, held)) == 6


def test_natural_clients_are_groups_with_enough_samples():
    parts = dealt(TOKENS, 3, scheme="natural", min_samples=2, groups=STORIES)
    assert [part.tolist() for part in parts] == [[1, 7], [4, 5, 6], [0, 2]]
    drawn = {tuple(map(tuple, dealt(TOKENS, 2, seed, scheme="natural", groups=STORIES))) for seed in range(20)}
    assert len(drawn) > 5
    assert all(part in {(1, 7), (3,), (4, 5, 6), (0, 2), (9,), (8,)} for parts in drawn for part in parts)
    with pytest.raises(DataError, match=r"3 of 6 natural clients have 2 samples or more, data\.clients asks for 4"):
        dealt(TOKENS, 4, scheme="natural", min_samples=2, groups=STORIES)


@pytest.mark.parametrize("scheme", ["dirichlet", "shards"])
def test_texts_have_no_classes_to_go_by(scheme):
    with pytest.raises(ConfigError, match=f"partition '{scheme}' goes by class labels; for text use quantity"):
        dealt(TOKENS, 2, scheme=scheme, groups=STORIES)
