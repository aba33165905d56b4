"""SGD with momentum over flat values, in every variant, as torch does it: what the kernels are compared with."""

from typing import NamedTuple

import torch

SIZES = (0, 1, 2, 31, 1023, 1024, 1025, 4099)
STEPS = 3


class Rule(NamedTuple):
    """The settings of one run of steps, named as `sgd_momentum_` names them."""

    lr: float
    momentum_factor: float
    weight_decay: float
    dampening: float
    nesterov: bool


RULES = (
    Rule(0.1, 0.0, 0.0, 0.0, False),
    Rule(0.1, 0.0, 1e-2, 0.0, False),
    Rule(0.05, 0.9, 0.0, 0.0, False),
    Rule(0.05, 0.9, 5e-4, 0.3, False),
    Rule(0.2, 0.8, 5e-4, 0.0, True),
)


def start(n: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Values and the gradients of each step, float32."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator)
    return values, [torch.randn(n, generator=generator) for _ in range(STEPS)]


def expected(rule: Rule, values: torch.Tensor, grads: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and momentum after torch.optim.SGD has done the same steps in float64."""
    weight = torch.nn.Parameter(values.double())
    optimizer = torch.optim.SGD(
        [weight],
        lr=rule.lr,
        momentum=rule.momentum_factor,
        weight_decay=rule.weight_decay,
        dampening=rule.dampening,
        nesterov=rule.nesterov,
    )
    for grad in grads:
        weight.grad = grad.double()
        optimizer.step()
    buffer = optimizer.state[weight].get("momentum_buffer")
    return weight.detach(), torch.full_like(weight, torch.nan) if buffer is None else buffer


def assert_close(actual: torch.Tensor, target: torch.Tensor) -> None:
    """Float32 rounding of a few steps; NaN only where the target has it."""
    torch.testing.assert_close(actual.double().cpu(), target, rtol=2e-6, atol=2e-6, equal_nan=True)
