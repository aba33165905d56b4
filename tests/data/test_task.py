"""Losses and scores against sums written out."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsparse.data.task import CLASSES, IGNORED, NEXT_TOKEN


def logs(*shares):
    """Logits of a distribution."""
    return [math.log(share) for share in shares]


# Two tokens; the model gives the right ones 1/2, 1/4, then 1/8, and the last place predicts nothing.
LOGITS = torch.tensor([[logs(1 / 2, 1 / 2), logs(3 / 4, 1 / 4)], [logs(7 / 8, 1 / 8), logs(1 / 10, 9 / 10)]])
NEXT = torch.tensor([[0, 1], [1, IGNORED]])


def test_the_loss_is_the_mean_of_the_tokens_that_count():
    assert NEXT_TOKEN.loss(LOGITS, NEXT).item() == pytest.approx((math.log(2) + math.log(4) + math.log(8)) / 3)


def test_scores_of_each_sample():
    scores = NEXT_TOKEN.scores(LOGITS, NEXT)
    assert scores.dtype == torch.float64
    # of a tie the first token is the prediction, so 1 of 2, and 0 of 1
    torch.testing.assert_close(scores, torch.tensor([[math.log(8), 1, 2], [math.log(8), 0, 1]], dtype=torch.float64))


def test_ignored_places_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    NEXT_TOKEN.loss(logits, NEXT).backward()
    assert not logits.grad[1, 1].any()
    assert logits.grad[1, 0].any()


def test_perplexities_of_three_stories_by_hand():
    """Story 0 in two samples: mean losses ln 2, ln 4 and ln 8 of 6, 2 and 1 tokens."""
    scores = torch.tensor(
        [[1 * math.log(2), 1, 2], [2 * math.log(4), 0, 2], [5 * math.log(2), 2, 4], [math.log(8), 0, 1]]
    ).double()
    metrics = NEXT_TOKEN.metrics(scores, torch.tensor([7, 9, 7, 12]))
    assert list(metrics) == list(NEXT_TOKEN.columns)
    assert metrics["perplexity_story"] == pytest.approx((2 + 4 + 8) / 3)
    # (6 ln 2 + 2 ln 4 + ln 8) / 9 = 13/9 ln 2
    assert metrics["loss"] == pytest.approx(13 / 9 * math.log(2))
    assert metrics["perplexity_token"] == pytest.approx(2 ** (13 / 9))
    assert metrics["accuracy"] == pytest.approx(3 / 9)


def test_without_stories_every_sample_is_one():
    scores = torch.tensor([[math.log(2), 1, 1], [math.log(6), 0, 1]]).double()
    assert NEXT_TOKEN.metrics(scores, None)["perplexity_story"] == pytest.approx((2 + 6) / 2)


def test_classes_are_one_label_a_sample(generator):
    logits, y = torch.randn(6, 4, generator=generator), torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(CLASSES.loss(logits, y), cross_entropy(logits, y))
    scores = CLASSES.scores(logits, y)
    assert torch.equal(scores[:, 1].bool(), logits.argmax(1) == y)
    metrics = CLASSES.metrics(scores, None)
    assert list(metrics) == list(CLASSES.columns) == ["accuracy", "loss"]
    assert metrics["loss"] == pytest.approx(cross_entropy(logits.double(), y).item(), rel=1e-6)
    assert metrics["accuracy"] == (logits.argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("task", [CLASSES, NEXT_TOKEN])
def test_of_nothing_there_are_finite_metrics(task):
    metrics = task.metrics(torch.empty(0, 3, dtype=torch.float64), None)
    assert list(metrics) == list(task.columns)
    assert all(math.isfinite(value) for value in metrics.values())
