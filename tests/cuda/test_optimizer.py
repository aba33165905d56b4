"""The flat SGD step on the CPU against torch.optim.SGD in float64."""

from itertools import product

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
