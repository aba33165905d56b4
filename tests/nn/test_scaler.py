"""Mixed precision with a gradient scaler: torch's own, with any of the optimisers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from tests.devices import CUDA

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "FlatSGD": lambda p: fs.optim.FlatSGD(p, lr=0.05, momentum=0.9),
    "FlatAdamW": lambda p: fs.optim.FlatAdamW(p, lr=0.01),
}
SCALE = 2.0**12  # a power of two: scaling and back changes no bit where nothing overflows


@pytest.fixture
def network(generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(24 * 36, 10),
        )  # fmt: skip
    return fs.sparsify(model, 0.3, score="random", exclude="none", generator=generator)


@pytest.fixture
def batches(generator):
    return [
        (torch.randn(16, 3, 6, 6, generator=generator), torch.randint(10, (16,), generator=generator)) for _ in range(4)
    ]


def train(model, batches, make, *, scaler=None, device="cpu", dtype=torch.bfloat16, spoiled=()):
    """Losses of a step with each batch; the gradients of `spoiled` steps overflow."""
    optimizer, losses = make(model.parameters()), []
    for number, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = F.cross_entropy(model(x.to(device)).float(), y.to(device))
        (loss if scaler is None else scaler.scale(loss)).backward()
        if number in spoiled:
            next(model.parameters()).grad.view(-1)[0] = torch.inf
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scaler_changes_no_bit_where_nothing_overflows(network, batches, name):
    plain, untrained, make = copy.deepcopy(network), copy.deepcopy(network), OPTIMIZERS[name]
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    expected = train(plain, batches, make)
    assert train(network, batches, make, scaler=scaler) == expected
    assert scaler.get_scale() == 4 * SCALE
    for p, q, before in zip(network.parameters(), plain.parameters(), untrained.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflows_is_left_out(network, batches, name):
    plain, make = copy.deepcopy(network), OPTIMIZERS[name]
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    train(network, batches, make, scaler=scaler, spoiled=(1,))
    assert scaler.get_scale() == SCALE / 2
    train(plain, [batches[0], *batches[2:]], make)
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("backend", ["masked", "cuda", "triton"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
def test_float16_on_a_device(network, batches, name, backend, device):
    fs.set_backend(network.to(device), backend)
    scaler = torch.amp.GradScaler(device, init_scale=SCALE)
    losses = train(network, 3 * batches, OPTIMIZERS[name], scaler=scaler, device=device, dtype=torch.float16)
    assert losses[-1] < losses[0]
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())
