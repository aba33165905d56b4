"""Optimisers by the Triton kernels, where the extension was built without CUDA: against torch's in float64."""

import pytest
import torch

from fedsparse.backends import flat_steps
from fedsparse.kernels import flat_optimizer
from fedsparse.optim import FlatAdamW, FlatSGD
from tests.kernels.device import DEVICE

PAIRS = [
    (FlatSGD, torch.optim.SGD, {"lr": 0.1}, {}),
    (FlatSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, {}),
    (FlatAdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.9)}, {}),
    (FlatAdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.9)}, {"capturable": True}),
]


@pytest.mark.parametrize(("ours", "theirs", "rule", "own"), PAIRS)
def test_steps_equal_torch(ours, theirs, rule, own, monkeypatch, generator):
    """Three steps of parameters of several shapes; one has no gradient at the first step."""
    monkeypatch.setattr(flat_steps, "kernels_at", lambda _: "triton")
    for name in ("fedsparse.optim.sgd.sgd", "fedsparse.optim.adamw.adamw"):
        monkeypatch.setattr(name, lambda parameters, *_, **__: pytest.fail("torch") if parameters else None)
    start = [torch.randn(shape, generator=generator) for shape in ((3, 4, 3), (1025,), (0,), (7,))]
    found = [torch.nn.Parameter(values.to(DEVICE, copy=True)) for values in start]
    wanted = [torch.nn.Parameter(values.double()) for values in start]
    optimizer, exact = ours(found, **rule, **own), theirs(wanted, **rule)
    for step in range(3):
        for a, b in zip(found, wanted, strict=True):
            grad = torch.randn(a.shape, generator=generator)
            a.grad, b.grad = (None, None) if step == 0 and a.shape == (7,) else (grad.to(DEVICE), grad.double())
        optimizer.step()
        exact.step()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.detach().double().cpu(), b.detach(), rtol=5e-6, atol=5e-6)


def drawn(sizes, arrays, generator):
    """Arrays of every size, on the device; what belongs to a parameter side by side."""
    return [[torch.rand(size, generator=generator).to(DEVICE) for _ in range(arrays)] for size in sizes]


def count_launches(kernel, monkeypatch):
    """How many programs each launch of a kernel has had."""
    grids, get = [], type(kernel).__getitem__
    monkeypatch.setattr(type(kernel), "__getitem__", lambda self, grid: (grids.append(grid), get(self, grid))[1])
    return grids


@pytest.mark.parametrize("counted_there", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_all_parameters_share_a_launch_and_get_the_bits_of_their_own(name, counted_there, monkeypatch, generator):
    """Ten parameters of one to a few programs, two of them empty; adamw counts each one's steps by itself."""
    monkeypatch.setattr(flat_steps, "kernels_at", lambda _: "triton")
    sizes = [1, 1024, 0, 1025, 16, 2049, 7, 100, 0, 33]
    rows = drawn(sizes, 3 if name == "sgd" else 4, generator)
    steps = [torch.tensor(float(i), device=DEVICE) for i in range(len(sizes))]
    alone = [[tensor.clone() for tensor in row] for row in rows]
    grids = count_launches(flat_optimizer._sgd_momentum_kernel, monkeypatch)
    if name == "sgd":
        rule = flat_steps.SgdRule(0.1, 0.9, 0.2, 0.01, nesterov=True)
        flat_steps.sgd_steps([flat_steps.SgdArrays(*row) for row in rows], rule, first_step=False)
        together = list(grids)
        for row in alone:
            flat_steps.sgd_steps([flat_steps.SgdArrays(*row)], rule, first_step=False)
    else:
        rule = flat_steps.AdamwRule(0.1, (0.8, 0.9), 1e-6, 0.01)
        own = [step.clone() for step in steps]
        arrays = [flat_steps.AdamwArrays(*row, step) for row, step in zip(rows, steps, strict=True)]
        flat_steps.adamw_steps(arrays, rule, counted_there=counted_there)
        together = list(grids)
        for row, step in zip(alone, own, strict=True):
            flat_steps.adamw_steps([flat_steps.AdamwArrays(*row, step)], rule, counted_there=counted_there)
        assert [float(step) for step in steps] == [i + 1.0 for i in range(len(sizes))]
    # 1,025 values take two programs and 2,049 three; each of six others takes one
    assert together == [(11,)]
    assert len(grids) == 1 + 8
    for row, single in zip(rows, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, single, strict=True))


def test_more_parameters_than_a_launch_takes(monkeypatch, generator):
    monkeypatch.setattr(flat_optimizer, "MOST", 4)
    rows = drawn([3] * 9, 3, generator)
    before = [[tensor.clone() for tensor in row] for row in rows]
    grids = count_launches(flat_optimizer._sgd_momentum_kernel, monkeypatch)
    values, grads, momenta = zip(*rows, strict=True)
    flat_optimizer.sgd_momentum_(
        values, grads, momenta, lr=0.5, momentum_factor=0.0, weight_decay=0.0, dampening=0.0, nesterov=False,
        first_step=False,
    )  # fmt: skip
    assert grids == [(4,), (4,), (1,)]
    for (value, _, momentum), (old, grad, same) in zip(rows, before, strict=True):
        assert torch.equal(value, old - 0.5 * grad)
        assert torch.equal(momentum, same)
