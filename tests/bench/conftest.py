"""A network that takes milliseconds, and peers that are not there."""

import pytest
import torch
from torch import nn

from fedsparse.bench import payload, peers, step


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture
def tiny_network(monkeypatch):
    """Takes the place of ResNet-18; the last layer stays dense."""

    def network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 32, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    for module in (step, payload):
        monkeypatch.setattr(module, "resnet18", network)


@pytest.fixture
def only_torch(monkeypatch):
    """As if the packages of the extra `bench` were not installed."""
    monkeypatch.setattr(peers, "_problem", lambda package: f"{package} is not installed")
