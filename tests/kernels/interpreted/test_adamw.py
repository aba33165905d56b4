"""AdamW over flat values against torch's in float64."""

import pytest
import torch

from fedsparse.kernels.flat_optimizer import adamw_, adamw_reference, cost_adamw
from tests.kernels.adamw_steps import RULES, SIZES, assert_close, expected, start
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("counted_there", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", SIZES)
def test_steps_equal_torch(n, rule, counted_there):
    values, grads = start(n, seed=n)
    wanted = expected(rule, values, grads)
    values, (average, square) = values.to(DEVICE), torch.zeros((2, n), device=DEVICE)
    for number, grad in enumerate(grads, 1):
        step = torch.tensor(float(number), device=DEVICE) if counted_there else number
        adamw_([values], [grad.to(DEVICE)], [average], [square], steps=[step], **rule._asdict())
    for got, target in zip((values, average, square), wanted, strict=True):
        assert_close(got, target)


@pytest.mark.parametrize("step", [1, 2, 100, 10_000, 3_000_000])
def test_corrections_hold_over_a_long_training(step):
    values, grad, average, square = (torch.full((1,), x, device=DEVICE) for x in (0.0, 0.0, 1.0, 1.0))
    adamw_(
        [values], [grad], [average], [square], steps=[step], lr=1.0, betas=(0.9, 0.9999), eps=1e-12, weight_decay=0.0
    )
    wanted = -0.9 / (1 - 0.9**step) / (0.9999 / (1 - 0.9999**step)) ** 0.5
    torch.testing.assert_close(values.item(), wanted, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("rule", RULES)
def test_reference_equals_torch(rule):
    values, grads = start(257, seed=3)
    wanted = expected(rule, values, grads)
    found = [values.double(), *torch.zeros((2, 257), dtype=torch.float64)]
    for step, grad in enumerate(grads, 1):
        adamw_reference(found[0], grad.double(), found[1], found[2], step=step, **rule._asdict())
    for got, target in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, target, rtol=1e-13, atol=1e-14)


def test_refuses_what_it_cannot_update():
    one = [torch.zeros(4)]
    with pytest.raises(ValueError, match="adamw_: steps count from 1, got 0"):
        adamw_(one, one, one, one, steps=[0], **RULES[0]._asdict())
    with pytest.raises(ValueError, match=r"step must be one float32 on cpu, got torch.int64 of shape \(\)"):
        adamw_(one, one, one, one, steps=[torch.tensor(1)], **RULES[0]._asdict())
    with pytest.raises(ValueError, match="adamw_: square has 3 entries on cpu, values has 4"):
        adamw_(one, one, one, [torch.zeros(3)], steps=[1], **RULES[0]._asdict())


def test_cost_counts_each_array_once():
    # values, gradient and both means read, all but the gradient written: seven floats a value
    assert cost_adamw(1000) == (14_000, 7 * 4 * 1000)
