"""Small dense and sparse models."""

import pytest
import torch
from torch import nn

from fedsparse.nn import SparseConv2d, SparseLinear


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def some_mask(generator):
    """A random mask of a weight."""
    return lambda weight, density=0.3: torch.rand(weight.shape, generator=generator) < density


@pytest.fixture
def pair(some_mask):
    """A sparse layer, and the dense layer whose pruned weights are zero."""

    def make(dense, density=0.3):
        mask = some_mask(dense.weight, density)
        kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
        sparse = kind.from_dense(dense, mask)
        with torch.no_grad():
            dense.weight.mul_(mask)
        return sparse, dense

    return make


class Net(nn.Module):
    """Convolutions with and without bias, batch norm, two linear layers: `(batch, 2, 6, 6)` -> `(batch, 4)`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten())
        self.hidden = nn.Linear(32, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(self.body(torch.relu(self.norm(self.conv(x)))))))


@pytest.fixture
def net():
    """Builds a network; the same weights at every call."""

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Net()

    return make
