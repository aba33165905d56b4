"""Batch norm, alone and with a ReLU behind it, against float64 autograd."""

import pytest
import torch
import torch.nn.functional as F

from fedsparse.kernels import batch_norm, batch_norm_backward
from fedsparse.kernels.batch_norm import norm, statistics
from fedsparse.kernels.batch_norm_backward import norm_backward
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")
MOMENTUM, EPS = 0.1, 1e-5
ALONE, PARTED = (3, 4, 5), (2, 2, 16400)  # channels of one program each, and of parts


@pytest.fixture
def launches(monkeypatch):
    """Kernels that would be launched and their grids, in order; nothing is computed."""
    found = []

    class Noted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            found.append((self.name, grid))
            return lambda *_, **__: None

    for module in (batch_norm, batch_norm_backward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Noted(name.strip("_").removesuffix("_kernel")))
    return found


def parameters(channels, generator):
    """Weight, bias, running mean and variance; one weight is negative, one zero."""
    weight = torch.randn(channels, generator=generator)
    weight[0] = -1.0
    weight[-1] = 0.0 if channels > 1 else -1.0
    bias, mean = torch.randn(2, channels, generator=generator)
    variance = torch.rand(channels, generator=generator) + 0.5
    return tuple(t.to(DEVICE) for t in (weight, bias, mean, variance))


@pytest.mark.parametrize("relu", [True, False], ids=["ReLU", "alone"])
@pytest.mark.parametrize(
    ("shape", "far"),
    [
        ((2, 3, 5, 7), 0.0),
        ((4, 1), 0.0),
        ((1, 5, 1024), 0.0),  # one step
        ((1, 5, 1025), 0.0),
        ((5, 2, 819), 300.0),  # one step of the widest, an element short, far from zero
        ((3, 2, 40, 41), 0.0),
        ((2, 1, 8192), 0.0),  # the longest that one program sums going back
        ((1, 1, 128, 129), 300.0),  # in parts going back
        ((4, 1, 8192), 0.0),  # the longest that one program sums going forward
        ((4, 1, 91, 91), 300.0),  # in parts
    ],
)
def test_forward_and_gradients(shape, far, relu, generator):
    x = torch.randn(shape, generator=generator).to(DEVICE) + far
    weight, bias, mean, variance = parameters(shape[1], generator)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    running = [mean.double(), variance.double()]
    normal = F.batch_norm(exact[0], *running, exact[1], exact[2], True, MOMENTUM, EPS)
    wanted, grad = F.relu(normal) if relu else normal, torch.randn(shape, generator=generator).to(DEVICE)
    if relu:
        grad[normal.abs() < 1e-3] = 0  # at the ReLU's edge a rounded gate may go either way
    wanted.backward(grad.double())
    found = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    y = norm(x, *found, weight, bias, relu=relu)
    close = {"rtol": 1e-5, "atol": 2e-5 + far * 1e-6}
    torch.testing.assert_close(y.double(), wanted.detach(), **close)
    torch.testing.assert_close(mean.double(), running[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), running[1], rtol=1e-5, atol=1e-6)
    gradients = norm_backward(grad, x, *found, weight, bias, relu=relu)
    many = x.numel() / shape[1]
    for got, leaf in zip(gradients, exact, strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, rtol=1e-4, atol=1e-5 * many**0.5 + far * 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [ALONE, PARTED])
def test_sixteen_bits_are_summed_in_float32(shape, dtype, generator):
    x, grad = torch.randn((2, *shape), generator=generator).to(dtype).to(DEVICE)
    weight, bias, mean, variance = parameters(shape[1], generator)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    wanted = F.relu(F.batch_norm(exact[0], None, None, *exact[1:], True, MOMENTUM, EPS))
    grad[(wanted < 1e-3) & (wanted > 0)] = 0  # a rounded gate may go either way
    wanted.backward(grad.double())
    found = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    y = norm(x, *found, weight, bias, relu=True)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), wanted.detach(), rtol=rounding, atol=1e-4)
    gradients = norm_backward(grad, x, *found, weight, bias, relu=True)
    assert (y.dtype, [g.dtype for g in gradients]) == (dtype, [dtype, torch.float32, torch.float32])
    torch.testing.assert_close(gradients[0].double(), exact[0].grad, rtol=rounding, atol=1e-3)
    for got, leaf in zip(gradients[1:], exact[1:], strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [ALONE, (1, 1, 7), (5, 3, 11, 31), (1, 1, 128, 129), (2, 1, 16400)])
def test_relu_of_a_sum(shape, dtype, generator):
    x, other, grad = torch.randn((3, *shape), generator=generator).to(dtype).to(DEVICE)
    weight, bias, *_ = parameters(shape[1], generator)
    exact = [t.double().requires_grad_() for t in (x, weight, bias, other)]
    summed = F.batch_norm(exact[0], None, None, *exact[1:3], True, MOMENTUM, EPS) + exact[3]
    grad[summed.abs() < 1e-3] = 0  # a rounded gate may go either way
    F.relu(summed).backward(grad.double())
    found = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    bits = torch.full((shape[1], -(-x.numel() // shape[1] // 32)), 7, dtype=torch.int32, device=DEVICE)
    y = norm(x, *found, weight, bias, relu=True, other=other, bits=bits)
    gated = torch.empty_like(grad)
    gradients = norm_backward(grad, x, *found, weight, bias, relu=True, bits=bits, gated=gated)
    close = {"rtol": max(1e-4, torch.finfo(dtype).eps), "atol": 1e-5 * (x.numel() / shape[1]) ** 0.5 + 1e-4}
    torch.testing.assert_close(y.double(), F.relu(summed).detach(), **close)
    for got, leaf in zip((*gradients, gated), exact, strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, **close)
    assert torch.equal(gated, torch.where(y > 0, grad, 0))


@pytest.mark.parametrize("shape", [ALONE, PARTED])
def test_batches_are_counted_once(shape, generator):
    x, batches = torch.randn(shape, generator=generator).to(DEVICE), torch.full((), 6, device=DEVICE)
    _, _, mean, variance = parameters(shape[1], generator)
    counted = statistics(x, mean.clone(), variance.clone(), batches, momentum=MOMENTUM, eps=EPS)
    plain = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    assert (batches.dtype, int(batches)) == (torch.int64, 7)
    assert all(torch.equal(a, b) for a, b in zip(counted, plain, strict=True))


def test_nan_in_a_sum_passes_and_its_gradient_passes(generator):
    x, other, grad = torch.randn((3, *ALONE), generator=generator).to(DEVICE)
    other[0, 1, 2] = torch.nan
    mean, rstd = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    bits, gated = torch.empty(4, 1, dtype=torch.int32, device=DEVICE), torch.empty_like(grad)
    y = norm(x, mean, rstd, None, None, relu=True, other=other, bits=bits)
    norm_backward(grad, x, mean, rstd, None, None, relu=True, bits=bits, gated=gated)
    assert y.isnan().nonzero().tolist() == [[0, 1, 2]]
    assert gated[0, 1, 2] == grad[0, 1, 2]


def test_parameters_and_running_statistics_of_half_precision(generator):
    x = torch.randn((2, 2, 6, 6), generator=generator).half().to(DEVICE)
    halves = [t.half() for t in parameters(2, generator)]
    wide = [t.float() for t in halves]
    again = statistics(x, *halves[2:], momentum=MOMENTUM, eps=EPS)
    statistics(x, *wide[2:], momentum=MOMENTUM, eps=EPS)
    assert torch.equal(norm(x, *again, *halves[:2], relu=True), norm(x, *again, *wide[:2], relu=True))
    for half, whole in zip(halves[2:], wide[2:], strict=True):
        assert torch.equal(half, whole.half())


@pytest.mark.parametrize("shape", [ALONE, PARTED])
def test_without_parameters_and_running_statistics(shape, generator):
    x, grad = torch.randn((2, *shape), generator=generator).to(DEVICE)
    found = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    tracked = statistics(x, *torch.rand((2, shape[1]), device=DEVICE), momentum=1.0, eps=EPS)
    assert all(torch.equal(a, b) for a, b in zip(found, tracked, strict=True))
    ones, zeros = torch.ones(shape[1], device=DEVICE), torch.zeros(shape[1], device=DEVICE)
    for weight, bias in ((None, None), (2 * ones, None), (None, 3 * ones)):
        given = ones if weight is None else weight, zeros if bias is None else bias
        assert torch.equal(norm(x, *found, weight, bias, relu=True), norm(x, *found, *given, relu=True))
        mine, theirs = (norm_backward(grad, x, *found, w, b, relu=True) for w, b in ((weight, bias), given))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 1.0, 1 / 3])
@pytest.mark.parametrize("shape", [ALONE, PARTED])
def test_running_statistics_move_by_the_momentum(shape, momentum, generator):
    """Cumulative averages are a momentum of 1 / n."""
    x = torch.randn(shape, generator=generator).to(DEVICE)
    *_, mean, variance = parameters(shape[1], generator)
    wanted = mean.double(), variance.double()
    F.batch_norm(x.double(), *wanted, None, None, True, momentum, EPS)
    statistics(x, mean, variance, momentum=momentum, eps=EPS)
    torch.testing.assert_close(mean.double(), wanted[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), wanted[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [ALONE, PARTED])
def test_nan_spoils_its_channel_and_no_other(shape, generator):
    x, grad = torch.randn((2, *shape), generator=generator).to(DEVICE)
    weight, bias, mean, variance = parameters(shape[1], generator)
    x[-1, 0, -1] = torch.nan
    found = statistics(x, mean, variance, momentum=MOMENTUM, eps=EPS)
    y = norm(x, *found, weight, bias, relu=True)
    for result in (y.transpose(0, 1), *(t[:, None] for t in (mean, variance))):
        assert result[0].isnan().all()
        assert result[1:].isfinite().all()
    grad_x, grad_weight, grad_bias = norm_backward(grad, x, *found, weight, bias, relu=True)
    for result in (grad_x.transpose(0, 1), grad_weight[:, None]):
        assert result[0].isnan().all()
        assert result[1:].isfinite().all()
    torch.testing.assert_close(grad_bias[0], grad[:, 0].sum())  # where the ReLU passes NaN, its gradient passes


def test_launches(launches):
    """A short channel is one program's, for its sums and for what is made of them; a long one's parts are merged."""
    for shape in ((32, 512, 4, 4), (32, 3, 512), (32, 3, 1024), (32, 3, 1025), (32, 300, 1025)):
        x, ones = torch.rand(shape, device=DEVICE), torch.ones(shape[1], device=DEVICE)
        found = statistics(x, ones, ones, momentum=MOMENTUM, eps=EPS)
        norm(x, *found, ones, ones, relu=True)
        norm_backward(x, x, *found, ones, ones, relu=True)
    assert launches == [
        ("statistics", (512,)), ("norm", (512, 1)), ("grad", (512, 1)),
        ("statistics", (3,)), ("norm", (3, 4)), ("grad", (3, 1)),
        ("statistics", (3,)), ("norm", (3, 8)), ("slopes", (3, 8)), ("grad", (3, 8)),
        ("moments", (3, 9)), ("statistics", (3,)), ("norm", (3, 9)), ("slopes", (3, 9)), ("grad", (3, 9)),
        ("statistics", (300,)), ("norm", (300, 1)), ("grad", (300, 1)),  # channels enough to fill a device
    ]  # fmt: skip


def test_every_run_gives_the_same_bits(generator):
    x, grad = torch.randn((2, *PARTED), generator=generator).to(DEVICE)
    results = []
    for _ in range(2):
        found = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
        results.append((*found, *norm_backward(grad, x, *found, None, None, relu=True)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (3, 2, 75, 75)])
def test_from_the_rounded_normalised_input(shape, generator):
    """Of the input no more is left than what is normalised, rounded to another dtype."""
    x = (2 * torch.randn(shape, generator=generator) + 1).to(DEVICE)
    weight, bias, *_ = parameters(2, generator)
    mean, rstd = statistics(x, None, None, momentum=MOMENTUM, eps=EPS)
    rounded = torch.empty_like(x, dtype=torch.float16)
    y = norm(x, mean, rstd, weight, bias, relu=True, rounded=rounded)
    assert torch.equal(y, norm(x, mean, rstd, weight, bias, relu=True))
    normal = (x - mean.view(2, 1, 1)) * rstd.view(2, 1, 1)
    torch.testing.assert_close(rounded, normal.half(), rtol=2e-3, atol=1e-6)
    again = norm(rounded, mean, rstd, weight, bias, relu=True, dtype=torch.float32, normal=True)
    wanted = F.relu(rounded.float() * weight.view(2, 1, 1) + bias.view(2, 1, 1))
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=1e-6)
    grad = torch.randn(x.shape, generator=generator).to(DEVICE)
    grad[y < 1e-2] = 0  # a rounded gate may go either way
    found = norm_backward(grad, rounded, mean, rstd, weight, bias, relu=True, normal=True)
    for mine, exact in zip(found, norm_backward(grad, x, mean, rstd, weight, bias, relu=True), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact, rtol=2e-2, atol=2e-2)


def test_refuses_one_element_and_strides():
    with pytest.raises(ValueError, match=r"needs two elements a channel, got an input of shape \(1, 3\)"):
        statistics(torch.zeros(1, 3), None, None, momentum=MOMENTUM, eps=EPS)
    with pytest.raises(ValueError, match="must be contiguous"):
        statistics(torch.zeros(3, 4).t(), None, None, momentum=MOMENTUM, eps=EPS)
    x, ones = torch.rand(4, 3, device=DEVICE), torch.ones(3, device=DEVICE)
    with pytest.raises(ValueError, match="must be contiguous"):
        norm(x, ones, ones, None, None, relu=True, other=x.t().contiguous().t())
    with pytest.raises(ValueError, match=r"gradient \(2, 3\) of an input \(4, 3\)"):
        norm_backward(torch.zeros(2, 3), x, ones, ones, None, None, relu=False)
