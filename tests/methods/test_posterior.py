"""Posteriors against numbers worked out by hand, and against the Beta distribution's moments."""

import math

import pytest
import torch

from fedsparse.methods.posterior import Posterior
from fedsparse.pruning import top


def test_nothing_known_is_even():
    posterior = Posterior.even(3, 1.0)
    assert posterior.alpha.tolist() == posterior.beta.tolist() == [1.0, 1.0, 1.0]
    assert posterior.mean.tolist() == [0.5, 0.5, 0.5]


def test_an_outcome_adds_its_evidence_where_it_was_observed():
    # gamma = 1/2, lambda = 10, one inactive arm each: no vote, half the votes, all votes; the last one unobserved.
    before = Posterior.even(4, 1.0)
    after = before.observed(torch.tensor([0, 1, 2]), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 10.0)
    assert after.alpha.tolist() == [3.5, 6.0, 8.5, 1.0]
    assert after.beta.tolist() == [8.5, 6.0, 3.5, 1.0]
    assert before.alpha.tolist() == [1.0] * 4, "the old belief is left as it was"
    # 3.5 / 12, 8.5 / 12
    assert after.mean.tolist() == pytest.approx([0.2917, 0.5, 0.7083, 0.5], abs=5e-5)


def test_core_and_non_core_after_one_update():
    after = Posterior.even(2, 1.0).observed(torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), 10.0)
    assert (after.alpha.tolist(), after.beta.tolist()) == ([11.0, 1.0], [1.0, 11.0])
    assert after.mean.tolist() == pytest.approx([0.9167, 0.0833], abs=5e-5)


def test_averaging_forgets():
    # 0.9 * 0.5 + 0.1 * 1 = 0.55, then 0.9 * 0.55 + 0.1 * 0 = 0.495
    once = Posterior.even(2, 0.5).averaged(torch.tensor([0]), torch.tensor([1.0]), 0.9)
    twice = once.averaged(torch.tensor([0]), torch.tensor([0.0]), 0.9)
    assert once.mean.tolist() == pytest.approx([0.55, 0.5])
    assert twice.mean.tolist() == pytest.approx([0.495, 0.5])
    assert (twice.alpha + twice.beta).tolist() == pytest.approx([1.0, 1.0])


def test_draws_have_the_mean_and_variance_of_beta(generator):
    draws = Posterior(torch.full((100_000,), 8.5), torch.full((100_000,), 3.5)).sample(generator)
    # The variance is 8.5 * 3.5 / (12^2 * 13). Of 1e5 draws, the mean deviates by 4e-4, the variance by about 7e-5.
    assert float(draws.mean()) == pytest.approx(0.7083, abs=0.002)
    assert float(draws.var()) == pytest.approx(0.015892, abs=0.0005)
    assert 0 <= float(draws.min()) < float(draws.max()) <= 1


def test_draws_follow_their_generator():
    posterior = Posterior.even(50, 2.0)
    one, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_certainty_is_sampled_as_such(generator):
    sure = torch.zeros(200, dtype=torch.bool)
    sure[torch.randperm(200, generator=generator)[:40]] = True
    many, one = torch.tensor(1e6), torch.tensor(1.0)
    draws = Posterior(torch.where(sure, many, one), torch.where(sure, one, many)).sample(generator)
    assert torch.equal(top(draws, 40), sure.nonzero().squeeze(1))


def test_arms_are_played_as_often_as_they_are_best(generator):
    # Two arms of Beta(2, 1) and Beta(1, 1): P(first larger) = integral of x * 2x dx = 2/3.
    rows = Posterior(torch.tensor([2.0, 1.0]).repeat(10_000), torch.ones(20_000)).sample(generator).view(-1, 2)
    played = (rows[:, 0] > rows[:, 1]).double().mean()
    assert float(played) == pytest.approx(2 / 3, abs=0.02)  # four standard deviations


def test_tiny_counts_give_no_nan(generator):
    posterior = Posterior.even(1000, 1e-3)
    assert not posterior.sample(generator).isnan().any()


def test_upper_bounds():
    # Two outcomes of 1 and 0 at position 0, one of 1 at position 1, none at position 2; t = 5.
    posterior = Posterior.even(3, 1.0)
    posterior = posterior.observed(torch.tensor([0, 1]), torch.tensor([1.0, 1.0]), 10.0)
    posterior = posterior.observed(torch.tensor([0]), torch.tensor([0.0]), 10.0)
    bound = posterior.upper_bound(4, 10.0)
    assert bound.tolist() == pytest.approx(
        [0.5 + math.sqrt(3 * math.log(5) / 4), 1 + math.sqrt(3 * math.log(5) / 2), math.inf]
    )
