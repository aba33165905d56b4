"""Training a sparse model is training the dense model under its masks."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fedsparse as fs
from fedsparse.nn import sparse_layers
from fedsparse.testing import relative_error

STEPS = 20


def losses(model, optimizer, batches, after_step):
    """Loss of each mini-batch, before its step."""
    found = []
    for x, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        after_step()
        found.append(loss.item())
    return found


@pytest.fixture
def batches(generator):
    """Mini-batches of one size, in float64."""
    return [
        (
            torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(10, (8,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def sgd(lr):
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


# A rounding error may put an activation on the other side of a rectifier's corner, and training amplifies the
# difference by as much as the weights move: at ordinary learning rates two float32 runs part within 20 steps whoever
# computes them. So large steps are compared in float64, and float32 with small ones.
RUNS = {
    "float64, sgd": (torch.float64, sgd(0.01), 1e-9),
    "float64, adam": (torch.float64, lambda model: torch.optim.Adam(model.parameters(), lr=1e-3), 1e-8),
}


def test_twenty_steps_of_the_full_resnet18(generator):
    """Uniform density 0.1, float32, the kernels `auto` chooses: the loss falls by a fifth and stays within 1e-4."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = fs.models.resnet18()
    sparse = fs.sparsify(copy.deepcopy(dense), 0.1, distribution="uniform")
    masks = fs.masks(sparse)
    batch = torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)

    def prune():
        with torch.no_grad():
            for name, mask in masks.items():
                dense.get_parameter(name).mul_(mask)

    prune()
    expected, found = (
        losses(m, torch.optim.SGD(m.parameters(), lr=4e-4, momentum=0.9), [batch] * STEPS, after)
        for m, after in ((dense, prune), (sparse, lambda: None))
    )
    assert expected[-1] < 0.8 * expected[0]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_losses_of_resnet18_equal_those_of_the_masked_dense_model(run, batches, generator):
    dtype, make, tolerance = RUNS[run]
    batches = [(x.to(dtype), labels) for x, labels in batches]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = fs.models.resnet18(width=16).to(dtype)
    sparse = fs.sparsify(copy.deepcopy(dense), 0.2, score="random", generator=generator)
    if dtype == torch.float64:
        fs.set_backend(sparse, "reference")
    masks = fs.masks(sparse)

    def prune():
        with torch.no_grad():
            for name, mask in masks.items():
                dense.get_parameter(name).mul_(mask)

    prune()
    frozen = copy.deepcopy(dense)
    untrained = losses(frozen, torch.optim.SGD(frozen.parameters(), lr=0.0), batches, lambda: None)
    expected = losses(dense, make(dense), batches, prune)
    found = losses(sparse, make(sparse), batches, lambda: None)
    assert found == pytest.approx(expected, abs=tolerance)
    assert max(abs(a - b) for a, b in zip(expected, untrained, strict=True)) > 50 * tolerance
    for name, layer in sparse_layers(sparse).items():
        assert relative_error(layer.weight, dense.get_parameter(name).detach()) < tolerance
