"""Kernels on blocked activations, of every instruction set that runs here, against torch in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fedsparse import _native
from fedsparse.backends import blocked
from fedsparse.errors import BackendError

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LANES = list(_native.instruction_sets().values())
BATCHES = (1, 7, 16, 33)
CHANNELS = (1, 3, 17)
PICTURES = ((1, 1), (3, 5), (8, 8))
# Every batch with every picture; channels in turn.
SHAPES = [(batch, CHANNELS[i % 3], *picture) for i, (batch, picture) in enumerate(itertools.product(BATCHES, PICTURES))]
LARGE = (64, 5, 24, 24)  # planes of more than one chunk of lines
EPS = 1e-5

every_lanes = pytest.mark.parametrize("lanes", LANES)
every_shape = pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)


def to_blocked(x, lanes, rest=0.0):
    """(batch, channels, height, width) -> (groups, channels, height, width, lanes); `rest` where there is no image."""
    spare = -len(x) % lanes
    x = torch.cat([x, torch.full((spare, *x.shape[1:]), rest, dtype=x.dtype)])
    return x.unflatten(0, (-1, lanes)).permute(0, 2, 3, 4, 1).contiguous()


def from_blocked(x, batch):
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)[:batch]


def spare_lanes(x, batch):
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)[batch:]


def uniform(generator, *shape):
    return torch.rand(shape, generator=generator) + 0.5


def normal(generator, *shape):
    return torch.randn(shape, generator=generator)


def per_channel(vector):
    return vector.double().view(1, -1, 1, 1)


def close(result, truth, tolerance=3e-6):
    """Largest error relative to the largest entry of the truth."""
    assert result.shape == truth.shape
    error = (result.double() - truth).abs().max().item()
    assert error <= tolerance * max(truth.abs().max().item(), 1e-3), f"error {error}"


def on_threads(count, call):
    torch.set_num_threads(count)
    return call()


def same_on_any_threads(call):
    """The results of a call, after checking that one and two threads give the same bits."""
    first, second = [on_threads(count, call) for count in (1, 2)]
    for a, b in zip(first, second, strict=True):
        assert a is b is None or torch.equal(a, b)
    return first


def test_unknown_number_of_lanes():
    with pytest.raises(BackendError, match=r"no instruction set has 5 lanes.* 4 "):
        blocked.isa_of(5)


# ---- moments


@every_lanes
@every_shape
def test_moments(lanes, shape, generator):
    x = normal(generator, *shape) * 3 + 1
    stored = to_blocked(x, lanes, rest=1e6)
    mean, variance = same_on_any_threads(lambda: blocked.moments(stored, shape[0]))
    wide = x.double()
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), wide.var((0, 2, 3), correction=0), rtol=2e-6, atol=1e-12)


@every_lanes
@pytest.mark.parametrize("mean", [1e3, -1e6])
def test_moments_far_from_zero(lanes, mean, generator):
    x = normal(generator, 33, 3, 24, 24) + mean
    result = blocked.moments(to_blocked(x, lanes), 33)
    wide = x.double()
    torch.testing.assert_close(result[0].double(), wide.mean((0, 2, 3)), rtol=6e-8, atol=0)
    torch.testing.assert_close(result[1].double(), wide.var((0, 2, 3), correction=0), rtol=2e-6, atol=0)


@every_lanes
def test_moments_with_one_large_number(lanes, generator):
    x = normal(generator, 16, 2, 24, 24)
    x[0, 0, 0, 0] = 1e6
    variance = blocked.moments(to_blocked(x, lanes), 16)[1]
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=2e-6, atol=0)


@every_lanes
def test_moments_of_equal_numbers_and_of_nan(lanes):
    x = torch.full((7, 3, 3, 5), 0.1)
    x[2, 1, 1, 1] = float("nan")
    mean, variance = blocked.moments(to_blocked(x, lanes), 7)
    assert mean[[0, 2]].tolist() == [x[0, 0, 0, 0]] * 2
    assert (variance[[0, 2]] >= 0).all()
    assert (variance[[0, 2]] < 1e-16).all()
    assert mean[1].isnan()
    assert variance[1].isnan()


# ---- combine


@every_lanes
@every_shape
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", ["none", "plain", "affine"])
@pytest.mark.parametrize("affine", [False, True])
def test_combine(lanes, shape, relu, residual, affine, generator):
    x, r = normal(generator, *shape), normal(generator, *shape)
    scale, shift, r_scale, r_shift = normal(generator, 4, shape[1])
    arguments, truth = [], x.double()
    if affine:
        truth = truth * per_channel(scale) + per_channel(shift)
    arguments += [scale, shift] if affine else [None, None]
    if residual == "plain":
        arguments += [to_blocked(r, lanes)]
        truth = truth + r.double()
    if residual == "affine":
        arguments += [to_blocked(r, lanes), r_scale, r_shift]
        truth = truth + r.double() * per_channel(r_scale) + per_channel(r_shift)
    (z,) = same_on_any_threads(lambda: [blocked.combine(to_blocked(x, lanes), *arguments, relu=relu)])
    close(from_blocked(z, shape[0]), truth.relu() if relu else truth, 1e-6)
    assert z.isfinite().all()


@every_lanes
def test_combine_in_place_and_nan(lanes, generator):
    x = normal(generator, 7, 3, 3, 5)
    x[0, 0, 0, 0] = float("nan")
    stored = to_blocked(x, lanes)
    assert blocked.combine(stored, relu=True, out=stored) is stored
    torch.testing.assert_close(from_blocked(stored, 7), x.relu(), rtol=0, atol=0, equal_nan=True)


# ---- backward


def batch_norm_case(generator, shape, lanes, *, relu, residual, mean=0.0):
    """Blocked arguments and float64 gradients of relu?(batch_norm(x) (+ r))."""
    x, r, grad = (normal(generator, *shape) for _ in range(3))
    x = x + mean
    weight, bias = uniform(generator, shape[1]), normal(generator, shape[1])
    leaves = [t.double().requires_grad_() for t in (x, weight, bias, r)]
    z = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True, eps=EPS)
    z = z + leaves[3] if residual else z
    z = z.relu() if relu else z
    truth = torch.autograd.grad(z, leaves[:3] + leaves[3:] * residual, grad.double())

    center, variance = blocked.moments(to_blocked(x, lanes), shape[0])
    inv_std = (variance + EPS).rsqrt()
    scale = weight * inv_std
    arguments = {
        "x": to_blocked(x, lanes, rest=3.0),
        "scale": scale,
        "shift": bias - center * scale,
        "mean": center,
        "inv_std": inv_std,
    }
    return to_blocked(grad, lanes), to_blocked(z.detach().float(), lanes, rest=1.0), arguments, truth


@every_lanes
@pytest.mark.parametrize("shape", [*SHAPES[1:], LARGE], ids=str)  # the first has one number and so no variance
@pytest.mark.parametrize("gate", ["open", "by value", "by x"])
def test_backward_of_batch_norm(lanes, shape, gate, generator):
    residual = gate == "by value"
    grad, z, arguments, truth = batch_norm_case(generator, shape, lanes, relu=gate != "open", residual=residual)
    if gate == "by value":
        arguments["gate"] = z
    result = same_on_any_threads(
        lambda: blocked.norm_backward(
            grad, shape[0], **arguments, gate_by_x=gate == "by x", want_gated=residual, want_affine=True
        )
    )
    for blocked_gradient in (result.x, result.gated) if residual else (result.x,):
        assert (spare_lanes(blocked_gradient, shape[0]) == 0).all()
    close(from_blocked(result.x, shape[0]), truth[0], 1e-5)
    close(result.weight, truth[1], 1e-5)
    close(result.bias, truth[2], 1e-5)
    if residual:
        close(from_blocked(result.gated, shape[0]), truth[3], 0)


@every_lanes
def test_backward_far_from_zero(lanes, generator):
    grad, z, arguments, truth = batch_norm_case(generator, (33, 3, 8, 8), lanes, relu=True, residual=False, mean=1e3)
    result = blocked.norm_backward(grad, 33, **arguments, gate=z, want_affine=True)
    close(from_blocked(result.x, 33), truth[0], 1e-4)  # half a unit in the last place of the mean is 3e-5 of std
    close(result.weight, truth[1], 1e-4)


@every_lanes
def test_backward_with_running_statistics(lanes, generator):
    shape = (7, 3, 3, 5)
    x, grad = normal(generator, *shape), normal(generator, *shape)
    weight, bias, center, inv_std = (uniform(generator, 3) for _ in range(4))
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    x_hat = (leaves[0] - per_channel(center)) * per_channel(inv_std)
    z = (x_hat * leaves[1].view(1, -1, 1, 1) + leaves[2].view(1, -1, 1, 1)).relu()
    truth = torch.autograd.grad(z, leaves, grad.double())
    scale = weight * inv_std
    result = blocked.norm_backward(
        to_blocked(grad, lanes), 7, to_blocked(x, lanes), scale, bias - center * scale,
        gate_by_x=True, inv_std=inv_std, center=center, want_affine=True,
    )  # fmt: skip
    close(from_blocked(result.x, 7), truth[0])
    close(result.weight, truth[1])
    close(result.bias, truth[2])


@every_lanes
@pytest.mark.parametrize("gate", ["open", "by value", "by x"])
def test_backward_in_place_gives_the_same(lanes, gate, generator):
    grad, z, arguments, _ = batch_norm_case(generator, (33, 17, 3, 5), lanes, relu=True, residual=True)
    if gate == "by value":
        arguments["gate"] = z
    apart, shared = [
        blocked.norm_backward(grad, 33, **arguments, gate_by_x=gate == "by x", want_gated=True, in_place=in_place)
        for in_place in (False, True)
    ]
    assert shared.x is grad
    assert torch.equal(apart.x, grad)
    assert torch.equal(apart.gated, shared.gated)


@every_lanes
def test_backward_of_relu_and_sum_alone(lanes, generator):
    shape = (7, 3, 3, 5)
    z, grad, scale = normal(generator, *shape), normal(generator, *shape), normal(generator, 3)
    result = blocked.norm_backward(
        to_blocked(grad, lanes), 7, scale=scale, gate=to_blocked(z, lanes, rest=1.0), want_gated=True
    )
    gated = grad * (z > 0)
    close(from_blocked(result.gated, 7), gated.double(), 0)
    close(from_blocked(result.x, 7), (gated * scale.view(1, -1, 1, 1)).double(), 0)
    assert (spare_lanes(result.x, 7) == 0).all()
    assert result.weight is result.bias is None


@every_lanes
@every_shape
def test_channel_sums(lanes, shape, generator):
    grad = normal(generator, *shape) + 1
    (sums,) = same_on_any_threads(lambda: [blocked.channel_sums(to_blocked(grad, lanes), shape[0])])
    close(sums, grad.double().sum((0, 2, 3)), 1e-6)


# ---- group norm


@every_lanes
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("channels", "parts"), [(1, 1), (6, 3), (17, 1), (4, 4)])
@pytest.mark.parametrize("picture", [*PICTURES[1:], (16, 16)], ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm(lanes, batch, channels, parts, picture, affine, generator):
    shape = (batch, channels, *picture)
    x, grad = normal(generator, *shape) + 2, normal(generator, *shape)
    weight, bias = (uniform(generator, channels), normal(generator, channels)) if affine else (None, None)
    leaves = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    truth = F.group_norm(leaves[0], parts, *leaves[1:], eps=EPS)
    stored, stored_grad = to_blocked(x, lanes), to_blocked(grad, lanes)
    z, mean, inv_std = same_on_any_threads(lambda: blocked.group_norm(stored, batch, parts, weight, bias, EPS))
    close(from_blocked(z, batch), truth.detach())
    assert z.isfinite().all()
    arguments = (stored, batch, parts, weight, mean, inv_std)
    grads = same_on_any_threads(lambda: blocked.group_norm_backward(stored_grad, *arguments, want_affine=affine))
    wanted = [leaf for leaf in leaves if leaf is not None]
    expected = torch.autograd.grad(truth, wanted, grad.double())
    close(from_blocked(grads[0], batch), expected[0], 1e-5)
    assert (spare_lanes(grads[0], batch) == 0).all()
    if affine:
        close(grads[1], expected[1], 1e-5)
        close(grads[2], expected[2], 1e-5)
    blocked.group_norm_backward(stored_grad, *arguments, want_affine=False, in_place=True)
    assert torch.equal(stored_grad, grads[0])


@every_lanes
def test_group_norm_far_from_zero_and_without_eps(lanes, generator):
    x = normal(generator, 7, 4, 8, 8) + 1e3
    z, _, _ = blocked.group_norm(to_blocked(x, lanes), 7, 2, None, None, 0.0)
    close(from_blocked(z, 7), F.group_norm(x.double(), 2, eps=0.0), 3e-5)  # the mean's last place is 3e-5 of std
    assert z.isfinite().all()


# ---- pooling

# kernel, stride, padding, dilation, ceil mode, size of the picture
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False, (8, 8)),
    ((3, 3), (2, 2), (1, 1), (1, 1), False, (8, 8)),
    ((3, 2), (1, 2), (1, 0), (2, 1), False, (7, 5)),
    ((3, 3), (2, 3), (1, 1), (1, 2), True, (8, 10)),
    ((5, 3), (1, 1), (2, 1), (1, 1), False, (3, 5)),
    ((1, 1), (1, 1), (0, 0), (1, 1), False, (1, 1)),
    ((16, 16), (16, 16), (0, 0), (1, 1), False, (16, 16)),
]
every_window = pytest.mark.parametrize("sizes", WINDOWS, ids=str)


def pooled_case(generator, sizes, batch, channels, *, integers=False):
    """Picture, the geometry as torch takes it, and as the kernels do."""
    kernel, stride, padding, dilation, ceil_mode, size = sizes
    x = normal(generator, batch, channels, *size)
    x = x.round() if integers else x  # with many equal numbers
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    output = tuple(F.max_pool2d(x, **options, dilation=dilation).shape[2:])
    return x, options, blocked.Window(kernel, stride, padding, dilation, output)


@every_lanes
@every_window
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("integers", [False, True])
def test_max_pool(lanes, sizes, batch, integers, generator):
    x, options, window = pooled_case(generator, sizes, batch, 3, integers=integers)
    leaf = x.double().requires_grad_()
    truth = F.max_pool2d(leaf, **options, dilation=window.dilation)
    grad = normal(generator, *truth.shape)
    stored, size = to_blocked(x, lanes), sizes[-1]
    y, winner = same_on_any_threads(lambda: blocked.max_pool(stored, batch, window))
    close(from_blocked(y, batch), truth.detach(), 0)
    alone, none = blocked.max_pool(stored, batch, window, want_winner=False)
    assert torch.equal(alone, y)
    assert none is None
    (grad_x,) = same_on_any_threads(
        lambda: [blocked.max_pool_backward(to_blocked(grad, lanes), winner, batch, window, size)]
    )
    close(from_blocked(grad_x, batch), torch.autograd.grad(truth, leaf, grad.double())[0], 1e-6)
    assert (spare_lanes(grad_x, batch) == 0).all()


@every_lanes
def test_max_pool_of_nan_and_minus_infinity(lanes, generator):
    x, options, window = pooled_case(generator, WINDOWS[1], 7, 3)
    x[0, 0], x[1, 1, 2, 3], x[2, 2, :2, :2] = -torch.inf, torch.nan, torch.nan
    leaf = x.clone().requires_grad_()
    truth = F.max_pool2d(leaf, **options)
    y, winner = blocked.max_pool(to_blocked(x, lanes), 7, window)
    torch.testing.assert_close(from_blocked(y, 7), truth.detach(), rtol=0, atol=0, equal_nan=True)
    grad = normal(generator, *truth.shape)
    grad_x = blocked.max_pool_backward(to_blocked(grad, lanes), winner, 7, window, (8, 8))
    close(from_blocked(grad_x, 7), torch.autograd.grad(truth, leaf, grad)[0].double())


@every_lanes
@every_window
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("divisor", [0, 3, "kernel"])
def test_average_pool(lanes, sizes, batch, divisor, generator):
    if sizes[3] != (1, 1):  # torch averages without dilation
        sizes = (*sizes[:3], (1, 1), *sizes[4:])
    if divisor == "kernel" and sizes[4]:
        sizes = (*sizes[:4], False, *sizes[5:])  # in ceil mode torch counts the border in part
    x, options, window = pooled_case(generator, sizes, batch, 3)
    if divisor == "kernel":
        divisor = sizes[0][0] * sizes[0][1]
    else:
        options |= {"count_include_pad": False, "divisor_override": divisor or None}
    leaf = x.double().requires_grad_()
    truth = F.avg_pool2d(leaf, **options)
    grad = normal(generator, *truth.shape)
    (y,) = same_on_any_threads(lambda: [blocked.average_pool(to_blocked(x, lanes), batch, window, divisor)])
    close(from_blocked(y, batch), truth.detach())
    (grad_x,) = same_on_any_threads(
        lambda: [blocked.average_pool_backward(to_blocked(grad, lanes), batch, window, sizes[-1], divisor)]
    )
    close(from_blocked(grad_x, batch), torch.autograd.grad(truth, leaf, grad.double())[0])
    assert (spare_lanes(grad_x, batch) == 0).all()
