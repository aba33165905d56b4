"""Optimisers by the Triton kernels, where the extension was built without CUDA: against torch's in float64."""

import pytest
import torch

from fedsparse.backends import flat_steps
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
