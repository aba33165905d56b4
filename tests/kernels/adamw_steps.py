"""AdamW over flat values, as torch does it: what the kernel is compared with."""

from typing import NamedTuple

import torch

SIZES = (0, 1, 31, 1025)
STEPS = 4


class Rule(NamedTuple):
    """The settings of one run of steps, named as `adamw_` names them."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


RULES = (
    Rule(1e-2, (0.9, 0.999), 1e-8, 0.0),
    Rule(5e-3, (0.8, 0.95), 1e-6, 0.1),
    Rule(1e-2, (0.0, 0.9), 1e-3, 1e-2),
)


def start(n: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Values and the gradients of each step, float32; some gradients are zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator)
    grads = [torch.randn(n, generator=generator) for _ in range(STEPS)]
    for grad in grads:
        grad[::7] = 0
    return values, grads


def expected(rule: Rule, values: torch.Tensor, grads: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Values and running means after torch.optim.AdamW has done the same steps in float64."""
    weight = torch.nn.Parameter(values.double())
    optimizer = torch.optim.AdamW([weight], **rule._asdict())
    for grad in grads:
        weight.grad = grad.double()
        optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def assert_close(actual: torch.Tensor, target: torch.Tensor) -> None:
    """Float32 rounding of a few steps."""
    torch.testing.assert_close(actual.double().cpu(), target, rtol=5e-6, atol=2e-6)
