"""The flat SGD and AdamW steps on the CPU against torch.optim in float64."""

from ctypes import c_double
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.kernels.sgd_steps import RULES, SIZES, assert_close, expected, start


@pytest.mark.parametrize("shift", [0, 1])
def test_steps_equal_torch_sgd(scheduled, shift):
    for n, rule in product(SIZES, RULES):
        values, grads = start(n, seed=n)
        # slices of larger buffers: a shift of one float rules 16-byte accesses out; the rest must stay NaN
        buffers = [np.full(n + 8, np.nan, np.float32) for _ in range(3)]
        current, grad, momentum = (buffer[shift : shift + n] for buffer in buffers)
        current[:] = values
        for step, slope in enumerate(grads):
            grad[:] = slope
            scheduled(
                "fedsparse_cuda_sgd_momentum", current, grad, momentum, n, rule.lr, rule.momentum_factor,
                rule.weight_decay, rule.dampening, rule.nesterov, step == 0, None,
            )  # fmt: skip
        for found, wanted in zip((current, momentum), expected(rule, values, grads), strict=True):
            assert_close(torch.from_numpy(found), wanted)
        for buffer in buffers:
            assert np.isnan(buffer[:shift]).all()
            assert np.isnan(buffer[shift + n :]).all()


class AdamwRule(NamedTuple):
    """Settings of torch.optim.AdamW, and what every gradient is multiplied by."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    scale: float | None


ADAMW_RULES = (
    AdamwRule(1e-3, 0.9, 0.999, 1e-8, 1e-2, None),
    AdamwRule(0.1, 0.0, 0.5, 1e-3, 0.0, 0.25),
    AdamwRule(0.05, 0.8, 0.99, 1e-6, 0.3, 1024.0),
)


def expected_adamw(rule: AdamwRule, values: torch.Tensor, grads: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Values, mean and square after the same steps in float64."""
    weight = torch.nn.Parameter(values.double())
    optimizer = torch.optim.AdamW(
        [weight], lr=rule.lr, betas=(rule.beta1, rule.beta2), eps=rule.eps, weight_decay=rule.weight_decay
    )
    for grad in grads:
        weight.grad = grad.double() * (1.0 if rule.scale is None else rule.scale)
        optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize("shift", [0, 1])
def test_steps_equal_torch_adamw(scheduled, shift):
    for n, rule in product((1, 31, 1024, 1025, 4099), ADAMW_RULES):
        values, grads = start(n, seed=n)
        buffers = [np.full(n + 8, np.nan, np.float32) for _ in range(4)]  # as above
        current, grad, mean, square = (buffer[shift : shift + n] for buffer in buffers)
        scale, settings = None if rule.scale is None else np.float32([rule.scale]), [c_double(x) for x in rule[:-1]]
        current[:] = values
        for step, slope in enumerate(grads, 1):
            grad[:] = slope
            scheduled("fedsparse_cuda_adamw", current, grad, mean, square, n, scale, *settings, step, None)
        target, unit = expected_adamw(rule, values, grads), rule.scale or 1.0
        assert_close(torch.from_numpy(current), target[0])
        assert_close(torch.from_numpy(mean) / unit, target[1] / unit)
        assert_close(torch.from_numpy(square) / unit**2, target[2] / unit**2)
        for buffer in buffers:
            assert np.isnan(buffer[:shift]).all()
            assert np.isnan(buffer[shift + n :]).all()


def test_adamw_counts_steps_from_one(shim):
    arrays = [np.ones(3, np.float32) for _ in range(4)]
    settings = [c_double(0.1)] * 5
    assert shim.value("fedsparse_cuda_adamw", *arrays, 3, None, *settings, 0, None) == 1
    assert shim.value("fedsparse_cuda_adamw", *arrays, 0, None, *settings, 1, None) == 0
    assert all((array == 1).all() for array in arrays)
