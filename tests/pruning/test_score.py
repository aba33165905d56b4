import torch

from fedsparse.pruning import magnitude, random

WEIGHTS = {"a": torch.nn.Parameter(torch.tensor([[-3.0, 2.0], [0.0, -0.5]])), "b": torch.ones(4, 2, 3, 3)}


def test_magnitude_is_the_absolute_value_without_gradient():
    scores = magnitude(WEIGHTS)
    assert torch.equal(scores["a"], torch.tensor([[3.0, 2.0], [0.0, 0.5]]))
    assert not scores["a"].requires_grad
    assert list(scores) == ["a", "b"]


def test_random_depends_on_the_generator_alone():
    first, again = (random(WEIGHTS, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.manual_seed(0)
    other = random(WEIGHTS, torch.Generator().manual_seed(4))
    assert all(torch.equal(first[name], again[name]) for name in WEIGHTS)
    assert not torch.equal(first["b"], other["b"])
    assert first["b"].shape == (4, 2, 3, 3)


def test_random_scores_are_uniform():
    scores = random({"a": torch.empty(100, 1000)}, torch.Generator().manual_seed(0))["a"]
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = torch.histc(scores, bins=10, min=0, max=1)
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 27.9  # 99.9 % quantile with 9 degrees of freedom
