"""FlatAdamW against torch's AdamW: by torch's own functions, by the kernels on the CPU, and on a device."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.backends import flat_steps
from fedsparse.nn import capture_step
from fedsparse.optim import FlatAdamW, FlatSGD
from tests.devices import CUDA
from tests.nn.test_graph import batch, captured, other_masks
from tests.nn.test_graph import network as convolutions
from tests.nn.test_graph import train as train_once
from tests.optim.test_sgd import network

RULES = [
    {},
    {"lr": 0.1, "betas": (0.0, 0.5), "weight_decay": 0.0},
    {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3},
]
OTHER_RULES = [{"amsgrad": True}, {"maximize": True}, {"lr": torch.tensor(0.1)}]


def groups(model):
    """Two, with settings of their own."""
    first, *others = model.parameters()
    return [{"params": [first], "lr": 0.03, "betas": (0.7, 0.8)}, {"params": others}]


def train(model, optimizer, steps=4, dtype=torch.float32):
    """The second parameter has a gradient at every other step only, so that steps are counted apart."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for number, parameter in enumerate(model.parameters()):
            grad = torch.randn(parameter.shape, generator=generator).to(parameter.device, dtype)
            parameter.grad = None if number == 1 and step % 2 == 0 else grad
        optimizer.step()
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def assert_no_parameters(*lists, **_):
    assert lists == ([],) * 6


@pytest.mark.parametrize("rule", RULES + OTHER_RULES)
def test_gives_the_bits_of_torch_where_no_kernel_is(rule):
    ours, theirs = network(), network()
    found = train(ours, FlatAdamW(groups(ours), **rule))
    wanted = train(theirs, torch.optim.AdamW(groups(theirs), **rule))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_kernels_take_the_steps_of_torch(where, rule, capturable, monkeypatch):
    """Against float64; every parameter is stepped by a kernel, each group by one call."""
    monkeypatch.setattr("fedsparse.optim.adamw.adamw", assert_no_parameters)
    calls = []
    launch = flat_steps.launch
    monkeypatch.setattr(flat_steps, "launch", lambda name, *rest: (calls.append(name), launch(name, *rest)))
    ours, theirs = network().to(where), network().double()
    optimizer, exact = FlatAdamW(groups(ours), capturable=capturable, **rule), torch.optim.AdamW(groups(theirs), **rule)
    found, wanted = train(ours, optimizer), train(theirs, exact, dtype=torch.float64)
    for ours_, exact_ in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_.double(), exact_, rtol=1e-5, atol=5e-6)
    assert calls == ["cuda_adamw"] * 8
    steps = [optimizer.state[p]["step"] for p in ours.parameters()]
    assert [step.item() for step in steps] == [4.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert {(step.dtype, step.shape) for step in steps} == {(torch.float32, ())}
    assert {step.device for step in steps} == {torch.device(where if capturable else "cpu")}


def test_a_group_is_one_call_of_sgd(where, monkeypatch):
    """Unless momentum is new for some of its parameters."""
    calls = []
    launch = flat_steps.launch
    monkeypatch.setattr(flat_steps, "launch", lambda name, *rest: (calls.append(name), launch(name, *rest)))
    model = network().to(where)
    train(model, FlatSGD(model.parameters(), lr=0.1, momentum=0.9), steps=4)
    assert calls == ["cuda_sgd_momentum"] * 5


def test_state_is_that_of_torch(where):
    """A checkpoint goes both ways: each goes on where the other was."""
    model, other = network().to(where), network(seed=1).to(where)
    ours, theirs = FlatAdamW(groups(model)), torch.optim.AdamW(groups(other))
    train(model, ours, 3)
    train(other, theirs, 2)
    saved, weights = copy.deepcopy((ours.state_dict(), theirs.state_dict())), (model.state_dict(), other.state_dict())
    assert all(set(entry) == {"step", "exp_avg", "exp_avg_sq"} for entry in saved[0]["state"].values())
    assert saved[0]["param_groups"] == theirs.state_dict()["param_groups"]
    for state, weight in zip(saved, copy.deepcopy(weights), strict=True):
        twins = [network().to(where) for _ in range(2)]
        optimizers = FlatAdamW(groups(twins[0])), torch.optim.AdamW(groups(twins[1]))
        found = []
        for twin, optimizer in zip(twins, optimizers, strict=True):
            twin.load_state_dict(weight)
            optimizer.load_state_dict(copy.deepcopy(state))
            found.append(train(twin, optimizer, 2))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_counter_on_the_device_is_saved(where):
    model, other = network().to(where), network().to(where)
    ours, continued = FlatAdamW(model.parameters(), capturable=True), FlatAdamW(other.parameters(), capturable=True)
    train(model, ours, 2)
    other.load_state_dict(model.state_dict())
    continued.load_state_dict(copy.deepcopy(ours.state_dict()))
    for a, b in zip(train(model, ours, 2), train(other, continued, 2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_new_mask_carries_the_state(where, capturable):
    model = network().to(where)
    optimizer = FlatAdamW(model.parameters(), capturable=capturable)
    train(model, optimizer, 2)
    layer = model[0]
    state = optimizer.state[layer.values]
    before = {key: state[key].clone() for key in ("exp_avg", "exp_avg_sq")}
    changed = layer.mask.clone().view(-1)
    first = layer.pattern.flat[0]
    grown = (~changed).nonzero().view(-1)[:2]
    changed[first], changed[grown] = False, True  # one more than before
    fs.set_masks(model, {"0.weight": changed.view(layer.mask.shape)}, optimizer=optimizer)
    for key, old in before.items():
        assert sorted(state[key].tolist()) == sorted([0.0, 0.0, *old[1:].tolist()])
    assert state["step"].item() == 2
    train(model, optimizer, 1)
    assert state["step"].item() == 3


def test_what_a_kernel_does_not_take_is_left_to_torch(where):
    """Other dtypes, memory that is not in order, settings of other formulas; beside a parameter that it takes."""
    for rule, change in (
        ({}, lambda p: p.double()),
        ({}, lambda p: p.t()),
        *((rule, lambda p: p) for rule in OTHER_RULES),
    ):
        start = torch.arange(12.0).view(3, 4)
        ours, theirs = (nn.Parameter(change(start.clone().to(where))) for _ in range(2))
        beside = nn.Parameter(torch.ones(2, device=where))
        for parameter, optimizer in (
            (ours, FlatAdamW([beside, ours, nn.Parameter(torch.ones(2))], **rule)),
            (theirs, torch.optim.AdamW([theirs], **rule)),
        ):
            for _ in range(2):
                parameter.grad, beside.grad = torch.ones_like(parameter), torch.ones_like(beside)
                optimizer.step()
        assert torch.equal(ours, theirs)
        assert (beside != 1).all()


def test_a_closure_is_asked_for_gradients(where):
    parameter = nn.Parameter(torch.ones(3).to(where))
    optimizer = FlatAdamW([parameter], lr=0.5, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    torch.testing.assert_close(parameter.tolist(), [0.5, 0.5, 0.5])


def test_a_captured_step_is_an_ordinary_one(where, generator):
    """Means and counters are there before the capture, as zeros, and every replay counts; masks may change."""
    model = convolutions(generator).to(where)
    other = copy.deepcopy(model)
    x, y = (tensor.to(where) for tensor in batch(generator))
    optimizer, eager = FlatAdamW(model.parameters(), capturable=True), FlatAdamW(other.parameters())
    step = captured(model, optimizer, x, y)
    for round_ in range(4):
        step(x, y)
        train_once(other, eager, x, y)
        if round_ == 1:
            masks = other_masks(model, generator)
            fs.set_masks(model, masks, optimizer=optimizer)
            fs.set_masks(other, masks, optimizer=eager)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert {state["step"].item() for state in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("make", [lambda p: FlatAdamW(p, capturable=True), lambda p: FlatSGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("where", [pytest.param("cuda", marks=CUDA)])
def test_a_graph_steps_as_single_launches_do(where, make, generator):
    model = convolutions(generator).to(where)
    other = copy.deepcopy(model)
    x, y = (tensor.to(where) for tensor in batch(generator))
    step = capture_step(model, make(model.parameters()), lambda x, y: F.cross_entropy(model(x), y), (x, y))
    eager = make(other.parameters())
    for _ in range(4):
        step(x, y)
        train_once(other, eager, x, y)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_graph_wants_counters_on_the_device(monkeypatch):
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = FlatAdamW([parameter])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="give it capturable=True"):
        optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]


def test_refuses_what_torch_refuses():
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Invalid beta parameter at index 1"):
        FlatAdamW([parameter], betas=(0.9, 1.0))
    parameter.grad = torch.ones(1).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        FlatAdamW([parameter]).step()
