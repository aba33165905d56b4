"""The SGD and AdamW steps on the CPU against torch.optim in float64: one call for parameters of all sizes."""

from ctypes import c_double
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.kernels.sgd_steps import RULES, SIZES, assert_close, expected, start

MANY = (0, 1, 2, 31, 1025, 2048, 4099, 0)  # sizes of one call; tiles hold 2048


class Arrays:
    """`count` arrays of each parameter, slices of larger buffers that hold NaN."""

    def __init__(self, sizes: tuple[int, ...], count: int, shift: int) -> None:
        self.sizes, self._shift = np.array(sizes, np.int64), shift
        self._buffers = [[np.full(n + 8, np.nan, np.float32) for n in sizes] for _ in range(count)]
        self.parts = [[b[shift : shift + len(b) - 8] for b in buffers] for buffers in self._buffers]

    def tables(self) -> list[NDArray]:
        """Addresses, a table for each array, and the sizes."""
        return [addresses(*part) for part in self.parts]

    def write(self, which: int, tensors: list[torch.Tensor]) -> None:
        for part, tensor in zip(self.parts[which], tensors, strict=True):
            part[:] = tensor

    def assert_rest_is_untouched(self) -> None:
        for buffer, n in ((b, n) for buffers in self._buffers for b, n in zip(buffers, self.sizes, strict=True)):
            assert np.isnan(buffer[: self._shift]).all()
            assert np.isnan(buffer[self._shift + n :]).all()


def addresses(*arrays: NDArray) -> NDArray:
    return np.array([array.ctypes.data for array in arrays], np.uint64)


@pytest.mark.parametrize("shift", [0, 1])  # of one float, which rules 16-byte accesses out
def test_steps_equal_torch_sgd(scheduled, shift):
    for rule in RULES:
        drawn = [start(n, seed=n) for n in SIZES]
        arrays = Arrays(SIZES, 3, shift)
        arrays.write(0, [values for values, _ in drawn])
        for step in range(3):
            arrays.write(1, [grads[step] for _, grads in drawn])
            scheduled(
                "fedsparse_cuda_sgd_momentum", len(SIZES), *arrays.tables(), arrays.sizes, rule.lr,
                rule.momentum_factor, rule.weight_decay, rule.dampening, rule.nesterov, step == 0, None,
            )  # fmt: skip
        for (values, grads), current, momentum in zip(drawn, arrays.parts[0], arrays.parts[2], strict=True):
            for found, wanted in zip((current, momentum), expected(rule, values, grads), strict=True):
                assert_close(torch.from_numpy(found), wanted)
        arrays.assert_rest_is_untouched()


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


@pytest.mark.parametrize("counted_there", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
def test_steps_equal_torch_adamw(scheduled, shift, counted_there):
    for rule in ADAMW_RULES:
        drawn = [start(n, seed=n) for n in MANY]
        arrays = Arrays(MANY, 4, shift)
        arrays.write(0, [values for values, _ in drawn])
        for zeros in (2, 3):
            arrays.write(zeros, [torch.zeros(n) for n in MANY])
        counters = [np.zeros(1, np.float32) for _ in MANY]
        scale, settings = None if rule.scale is None else np.float32([rule.scale]), [c_double(x) for x in rule[:-1]]
        for step in range(3):
            arrays.write(1, [grads[step] for _, grads in drawn])
            count = (addresses(*counters), None) if counted_there else (None, np.full(len(MANY), step + 1, np.int64))
            scheduled("fedsparse_cuda_adamw", len(MANY), *arrays.tables(), arrays.sizes, *count, scale, *settings, None)
        assert [counter.item() for counter in counters] == [3.0 * counted_there] * len(MANY)
        unit = rule.scale or 1.0
        for (values, grads), current, _, mean, square in zip(drawn, *arrays.parts, strict=True):
            wanted = expected_adamw(rule, values, grads)
            assert_close(torch.from_numpy(current), wanted[0])
            assert_close(torch.from_numpy(mean) / unit, wanted[1] / unit)
            assert_close(torch.from_numpy(square) / unit**2, wanted[2] / unit**2)
        arrays.assert_rest_is_untouched()


@pytest.mark.parametrize("step", [1, 2, 100, 10_000, 3_000_000])
def test_corrections_hold_over_a_long_training(shim, step):
    """Parameters of one call may be at different steps; the mean's correction tells most at the first ones."""
    betas = 0.9, 0.9999
    values, grad, mean, square = (np.full(1, x, np.float32) for x in (0.0, 0.0, 1.0, 1.0))
    others = [np.ones(1, np.float32) for _ in range(4)]
    tables = [addresses(a, b) for a, b in zip((values, grad, mean, square), others, strict=True)]
    settings = [c_double(x) for x in (1.0, *betas, 0.0, 0.0)]
    steps = np.array([step, 7], np.int64)
    shim("fedsparse_cuda_adamw", 2, *tables, np.ones(2, np.int64), None, steps, None, *settings, None)
    wanted = -betas[0] / (1 - betas[0] ** step) / np.sqrt(betas[1] / (1 - betas[1] ** step))
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    np.testing.assert_allclose(others[0], 1 - np.sqrt(1 - betas[1] ** 7) / (1 - betas[0] ** 7), rtol=1e-6)


def test_more_parameters_than_a_launch_takes(shim):
    """Every third one is empty; 230 parameters take three launches with SGD, four with AdamW."""
    sizes = tuple(0 if i % 3 == 0 else i % 5 + 1 for i in range(230))
    arrays, counters = Arrays(sizes, 4, 0), [np.zeros(1, np.float32) for _ in sizes]
    for which in range(4):
        arrays.write(which, [torch.full((n,), float(i)) for i, n in enumerate(sizes)])
    first, second, third, _ = arrays.tables()
    shim("fedsparse_cuda_sgd_momentum", 230, first, second, third, arrays.sizes, 0.5, 0.5, 0.0, 0.0, False, False, None)
    # momentum 0.5 i + i, and half of it is the step
    assert all((part == 0.25 * i).all() for i, part in enumerate(arrays.parts[0]))
    for which in (2, 3):
        arrays.write(which, [torch.zeros(n) for n in sizes])
    settings = [c_double(x) for x in (0.1, 0.9, 0.99, 0.0, 0.0)]
    tables = *arrays.tables(), arrays.sizes, addresses(*counters)
    shim("fedsparse_cuda_adamw", 230, *tables, None, None, *settings, None)
    # the first step moves by the learning rate, whatever the gradient
    assert all(np.allclose(part, 0.25 * i - 0.1) for i, part in enumerate(arrays.parts[0]))
    assert all(counter == 1 for counter in counters)
    arrays.assert_rest_is_untouched()


def test_nothing_but_empty_parameters(shim):
    """No launch for their values, and steps are counted."""
    sizes, nowhere, counters = np.zeros(2, np.int64), np.zeros(2, np.uint64), np.zeros((2, 1), np.float32)
    shim("fedsparse_cuda_sgd_momentum", 2, *[nowhere] * 3, sizes, 0.1, 0.9, 0.0, 0.0, False, False, None)
    counts = addresses(*counters), None
    shim("fedsparse_cuda_adamw", 2, *[nowhere] * 4, sizes, *counts, None, *[c_double(0.1)] * 5, None)
    assert counters.tolist() == [[1.0], [1.0]]


def test_adamw_counts_steps_from_one(shim):
    arrays = [np.ones(3, np.float32) for _ in range(4)]
    tables, settings = [addresses(array) for array in arrays], [c_double(0.1)] * 5
    call = "fedsparse_cuda_adamw", 1, *tables, np.array([3], np.int64), None
    assert shim.value(*call, np.array([0], np.int64), None, *settings, None) == 1
    assert all((array == 1).all() for array in arrays)
    assert shim.value("fedsparse_cuda_adamw", 0, *[None] * 7, None, *settings, None) == 0
