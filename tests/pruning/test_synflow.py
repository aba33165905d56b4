"""SynFlow: its conservation law and hand-computed scores."""

import copy
from itertools import pairwise

import torch
from torch import nn

from fedsparse.models import resnet18
from fedsparse.pruning import synflow


def test_a_chain_of_two_weights_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    model[0].weight.data = torch.tensor([[2.0]])
    model[2].weight.data = torch.tensor([[-3.0]])
    assert {name: s.tolist() for name, s in synflow(model, (1,)).items()} == {"0.weight": [[6.0]], "2.weight": [[6.0]]}


def test_every_layer_of_a_bias_free_network_has_the_same_sum():
    torch.manual_seed(0)
    sizes = [7, 30, 5, 20, 4]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers)
    scores = synflow(model, (7,))
    flow = torch.ones(1, 7, dtype=torch.float64)
    for layer in model[::2]:
        flow = flow @ layer.weight.detach().double().abs().T
    for score in scores.values():
        assert score.dtype == torch.float64
        assert (score >= 0).all()
        torch.testing.assert_close(score.sum(), flow.sum(), rtol=1e-12, atol=0)


def test_deep_networks_stay_in_range():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(60)))
    for layer in model:
        layer.weight.data.mul_(8)  # 60 layers of a gain near 32: far beyond float32
    scores = synflow(model, (64,))
    assert all(bool(score.isfinite().all()) for score in scores.values())
    assert scores["0.weight"].sum() > torch.finfo(torch.float32).max


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = resnet18(width=4).train()
    before = copy.deepcopy(model.state_dict())
    scores = synflow(model, (3, 8, 8))
    assert model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert model.conv1.weight.dtype == torch.float32
    assert all(p.grad is None for p in model.parameters())
    assert len(scores) == 21
    assert not any(score.requires_grad for score in scores.values())
