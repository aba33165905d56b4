"""AdamW over flat values against torch's in float64."""

import pytest
import torch

from fedsparse.kernels.flat_optimizer import adamw_, adamw_reference, cost_adamw
from tests.kernels.adamw_steps import RULES, SIZES, assert_close, expected, start
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", SIZES)
def test_steps_equal_torch(n, rule):
    values, grads = start(n, seed=n)
    wanted = expected(rule, values, grads)
    # NaN: the first step must not read the running means
    values, (average, square) = values.to(DEVICE), torch.full((2, n), torch.nan, device=DEVICE)
    for step, grad in enumerate(grads, 1):
        adamw_(values, grad.to(DEVICE), average, square, step=step, **rule._asdict())
    for got, target in zip((values, average, square), wanted, strict=True):
        assert_close(got, target)


@pytest.mark.parametrize("rule", RULES)
def test_reference_equals_torch(rule):
    values, grads = start(257, seed=3)
    wanted = expected(rule, values, grads)
    found = [values.double(), *torch.full((2, 257), torch.nan, dtype=torch.float64)]
    for step, grad in enumerate(grads, 1):
        adamw_reference(found[0], grad.double(), found[1], found[2], step=step, **rule._asdict())
    for got, target in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, target, rtol=1e-13, atol=1e-14)


def test_refuses_what_it_cannot_update():
    one = torch.zeros(4)
    with pytest.raises(ValueError, match="adamw_: steps count from 1, got 0"):
        adamw_(one, one, one, one, step=0, **RULES[0]._asdict())
    with pytest.raises(ValueError, match="adamw_: square has 3 entries on cpu, values has 4"):
        adamw_(one, one, one, torch.zeros(3), step=1, **RULES[0]._asdict())


def test_cost_counts_each_array_once():
    # values, gradient and both means read, all but the gradient written: seven floats a value
    assert cost_adamw(1000) == (14_000, 7 * 4 * 1000)
