"""FlatSGD against torch's SGD: by torch's own functions, by the kernels on the CPU, and on a device."""

import copy

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse import _native
from fedsparse.backends import flat_steps
from fedsparse.optim import FlatSGD
from tests.nn.test_graph import batch, captured
from tests.nn.test_graph import network as convolutions
from tests.nn.test_graph import train as train_once

RULES = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.02},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True},
]


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(45, 7), nn.Linear(7, 3))
        return fs.sparsify(net, 0.4)


def train(model, optimizer, steps=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device, dtype)
        optimizer.step()
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("rule", RULES)
def test_gives_the_bits_of_torch_where_no_kernel_is(rule):
    ours, theirs = network(), network()
    found = train(ours, FlatSGD(ours.parameters(), **rule))
    wanted = train(theirs, torch.optim.SGD(theirs.parameters(), **rule))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_kernels_take_the_steps_of_torch(where, rule, monkeypatch):
    """Against float64; every parameter is stepped by a kernel."""
    monkeypatch.setattr("fedsparse.optim.sgd.sgd", None)
    ours, theirs = network().to(where), network().double()
    found = train(ours, FlatSGD(ours.parameters(), **rule))
    wanted = train(theirs, torch.optim.SGD(theirs.parameters(), **rule), dtype=torch.float64)
    for ours_, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_.double(), exact, rtol=2e-6, atol=2e-6)


def test_state_is_that_of_torch(where):
    """A checkpoint goes both ways, and a new mask carries the momentum."""
    rule = {"lr": 0.1, "momentum": 0.9}
    model, other = network().to(where), network().to(where)
    ours, theirs = FlatSGD(model.parameters(), **rule), torch.optim.SGD(other.parameters(), **rule)
    train(model, ours, 2)
    train(other, theirs, 2)
    continued = FlatSGD(other.parameters(), **rule)
    continued.load_state_dict(copy.deepcopy(theirs.state_dict()))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for a, b in zip(train(model, ours, 1), train(other, continued, 1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    layer = model[0]
    kept = layer.mask.clone()
    momentum = ours.state[layer.values]["momentum_buffer"].clone()
    pruned = (~kept).view(-1).nonzero()[0]
    changed = kept.view(-1).clone()
    changed[pruned], changed[layer.pattern.flat[0]] = True, False
    fs.set_masks(model, {"0.weight": changed.view(kept.shape)}, optimizer=ours)
    carried = ours.state[layer.values]["momentum_buffer"]
    assert sorted(carried.tolist()) == sorted([0.0, *momentum[1:].tolist()])


def test_what_a_kernel_does_not_take_is_left_to_torch(where):
    """Another dtype, memory that is not in order, a learning rate on the device, parameters without a gradient."""
    for rule, change in (
        ({"lr": 0.1, "momentum": 0.9}, lambda p: p.double()),
        ({"lr": 0.1, "momentum": 0.9}, lambda p: p.t()),
        ({"lr": torch.tensor(0.1), "momentum": 0.9}, lambda p: p),
    ):
        start = torch.arange(12.0).view(3, 4)
        ours, theirs = (nn.Parameter(change(start.clone().to(where))) for _ in range(2))
        for parameter, optimizer in (
            (ours, FlatSGD([ours, nn.Parameter(torch.ones(2))], **rule)),
            (theirs, torch.optim.SGD([theirs], **rule)),
        ):
            for _ in range(2):
                parameter.grad = torch.ones_like(parameter)
                optimizer.step()
        assert torch.equal(ours, theirs)


def test_a_closure_is_asked_for_gradients(where):
    parameter = nn.Parameter(torch.ones(3).to(where))
    optimizer = FlatSGD([parameter], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert parameter.tolist() == [0.0, 0.0, 0.0]


def test_a_captured_step_is_an_ordinary_one(where, generator):
    """Momentum is there before the capture, as zeros, and every replay steps."""
    rule = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    model = convolutions(generator).to(where)
    other = copy.deepcopy(model)
    x, y = (tensor.to(where) for tensor in batch(generator))
    step, eager = captured(model, FlatSGD(model.parameters(), **rule), x, y), FlatSGD(other.parameters(), **rule)
    for _ in range(3):
        step(x, y)
        train_once(other, eager, x, y)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_refuses_what_torch_refuses():
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        FlatSGD([nn.Parameter(torch.ones(1))], lr=0.1, nesterov=True)


def test_who_steps(monkeypatch):
    """Triton where the extension was built without CUDA; main memory has no kernel."""
    assert not flat_steps.takes(torch.ones(2))

    class Elsewhere:
        dtype, device = torch.float32, torch.device("cuda")

        def is_contiguous(self):
            return True

    monkeypatch.setattr(_native, "on_device", lambda _: False)
    for installed in (True, False):
        monkeypatch.setattr(_native, "has_triton", lambda installed=installed: installed)
        assert flat_steps.takes(Elsewhere()) is installed
