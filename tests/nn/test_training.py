"""Training a sparse model is training the dense model under its masks."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fedsparse as fs

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
    return [
        (torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_losses_of_resnet18_equal_those_of_the_masked_dense_model(optimiser, batches, generator):
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = fs.models.resnet18(width=16)
    sparse = fs.sparsify(copy.deepcopy(dense), 0.2, score="random", generator=generator)
    masks = fs.masks(sparse)

    def prune():
        with torch.no_grad():
            for name, mask in masks.items():
                dense.get_parameter(name).mul_(mask)

    def make(model):
        if optimiser == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        return torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-4)

    prune()
    expected = losses(dense, make(dense), batches, prune)
    found = losses(sparse, make(sparse), batches, lambda: None)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len(set(found)) == STEPS
    for name, layer in fs.nn.sparse_layers(sparse).items():
        torch.testing.assert_close(layer.weight, dense.get_parameter(name).detach(), rtol=1e-2, atol=1e-3)
