"""Steps over all kept weights and norms of the network: ours in one launch and in one for each, and torch's."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import Sizes
from benchmarks.gpu.record import Row
from benchmarks.gpu.stages.dense import network_row, prunable
from benchmarks.gpu.sweep import Job
from fedsparse.backends.flat_steps import SgdArrays, SgdRule, sgd_steps
from fedsparse.optim import FlatAdamW, FlatSGD

__all__ = ["OPS", "jobs"]

OPS = ("sgd", "adamw")
_BYTES = {"sgd": 20, "adamw": 28}  # that a step has to move for each value
# Weights of convolutions, and weights and biases of norms, as many as ResNet-18 has.
_DENSITY, _WEIGHTS, _NORMS, _CHANNELS = 0.1, 20, 40, 256

Make = Callable[..., torch.optim.Optimizer]
_EXACT: dict[str, Make] = {
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}


def jobs(sizes: Sizes, device: str) -> Iterable[Job]:
    """torch's fused steps count on the device as ours do, so that all may be captured."""
    momentum: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
    counted: dict[str, Any] = {"lr": 1e-3, "capturable": device == "cuda"}
    makes: list[tuple[str, str, Make]] = [
        ("sgd", "FlatSGD", partial(FlatSGD, **momentum)),
        ("sgd", "torch SGD foreach", partial(torch.optim.SGD, **momentum, foreach=True)),
        ("sgd", "torch SGD fused", partial(torch.optim.SGD, **momentum, fused=True)),
        ("adamw", "FlatAdamW", partial(FlatAdamW, **counted)),
        ("adamw", "torch AdamW foreach", partial(torch.optim.AdamW, **counted, foreach=True)),
        ("adamw", "torch AdamW fused", partial(torch.optim.AdamW, **counted, fused=True)),
    ]
    for op, who, make in makes:
        yield Job(who, lambda op=op, who=who, make=make: _optimizer(op, who, make, sizes, device))  # type: ignore[misc]
    if device == "cuda":  # the kernels of a device
        yield Job("SGD, a launch each", lambda: _single_launches(sizes))
        yield Job("Triton sgd_momentum_", lambda: _triton(sizes))


def _drawn(sizes: Sizes, device: str) -> list[Tensor]:
    """Values of every parameter, float32."""
    kept = max(int(_DENSITY * prunable(sizes)) // _WEIGHTS, 1)
    counts = [kept] * _WEIGHTS + [_CHANNELS] * _NORMS
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, generator=generator).to(device) for count in counts]


def _optimizer(op: str, who: str, make: Make, sizes: Sizes, device: str) -> Iterable[Row]:
    parameters = [nn.Parameter(values) for values in _drawn(sizes, device)]
    twins = [nn.Parameter(parameter.detach().double()) for parameter in parameters]
    optimizer, exact = make(parameters), _EXACT[op](twins)
    for _ in range(2):
        for parameter, twin in zip(parameters, twins, strict=True):
            twin.grad = torch.randn_like(twin)
            parameter.grad = twin.grad.float()
        optimizer.step()
        exact.step()
    error = max(float((a - b).detach().abs().max()) for a, b in zip(parameters, twins, strict=True))
    if not error <= 1e-5:
        raise ValueError(f"{who} is off by {error:.1e} against float64 after two steps")
    yield _row(op, who, optimizer.step, parameters, sizes, device)


def _single_launches(sizes: Sizes) -> Iterable[Row]:
    """What one launch for all saves."""
    rule = SgdRule(1e-3, 0.9, 0.0, 0.0, nesterov=False)
    values = _drawn(sizes, "cuda")
    rows = [SgdArrays(part, torch.randn_like(part), torch.zeros_like(part)) for part in values]

    def step() -> None:
        for row in rows:
            sgd_steps([row], rule, first_step=False)

    yield _row("sgd", "ours, a launch each", step, values, sizes, "cuda")


def _triton(sizes: Sizes) -> Iterable[Row]:
    """What devices take whose extension was built without CUDA, in one launch as well."""
    from fedsparse.kernels.flat_optimizer import sgd_momentum_

    values = _drawn(sizes, "cuda")
    grads, momenta = [torch.randn_like(part) for part in values], [torch.zeros_like(part) for part in values]

    def step() -> None:
        sgd_momentum_(values, grads, momenta, lr=1e-3, momentum_factor=0.9, weight_decay=0.0, dampening=0.0,
                          nesterov=False, first_step=False)  # fmt: skip

    yield _row("sgd", "Triton sgd_momentum_", step, values, sizes, "cuda")


def _row(op: str, who: str, step: Callable[[], Any], values: Iterable[Tensor], sizes: Sizes, device: str) -> Row:
    moved = _BYTES[op] * sum(part.numel() for part in values)
    return {**network_row(op, f"{who}, density {_DENSITY:g}", [step], sizes, device), "bytes": moved}
