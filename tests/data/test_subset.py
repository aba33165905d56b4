import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.data.subset import balanced, held_out
from fedsparse.errors import ConfigError


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 90), st.integers(0, 2**32))
def test_no_class_gets_two_more_than_another_that_has_samples_left(labels, limit, seed):
    labels = np.array(labels)
    taken = balanced(labels, limit, np.random.default_rng(seed))
    assert len(taken) == min(limit, len(labels))
    assert (np.diff(taken) > 0).all()
    have, got = np.bincount(labels, minlength=5), np.bincount(labels[taken], minlength=5)
    assert (got <= have).all()
    assert all(got[c] >= got.max() - 1 for c in range(5) if got[c] < have[c])
    assert np.array_equal(taken, balanced(labels, limit, np.random.default_rng(seed)))


def test_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    taken = balanced(labels, 5, np.random.default_rng(0))
    assert np.bincount(labels[taken]).tolist() == [2, 1, 2]


def test_no_limit_takes_all_without_a_draw():
    generator = np.random.default_rng(0)
    assert balanced(np.array([1, 0]), None, generator).tolist() == [0, 1]
    assert balanced(np.array([1, 0]), 2, generator).tolist() == [0, 1]
    assert generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_seeds_differ():
    labels = np.zeros(100, int)
    one, two = (balanced(labels, 10, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_is_positive(limit, rng):
    with pytest.raises(ConfigError, match=f"at least 1, got {limit}"):
        balanced(np.zeros(4, int), limit, rng)


def test_held_out_is_a_share_of_each_class(rng):
    labels = rng.permutation(np.repeat([0, 3, 5], [10, 40, 2]))
    held = held_out(labels, 0.25, rng)
    assert held.dtype == bool
    assert np.bincount(labels[held], minlength=6).tolist() == [2, 0, 0, 10, 0, 0]
