"""Norms, ReLU, sums and pooling on blocked activations (csrc/cpu/blocked.h): thin calls of the C++ kernels.

Every activation is a contiguous, 64-byte aligned tensor `(groups, channels, height, width, lanes)`, as `torch.empty`
makes them; image n sits in group `n // lanes`, lane `n % lanes`. `batch` is the number of images. Lanes of the last
group without an image hold any finite numbers in activations and zeros in gradients. Activations and gradients of a
call are all float32 or all bfloat16, which is what they are stored as: arithmetic is float32. Vectors of channels are
contiguous float32. Nothing is checked here but the number of lanes: the caller made these tensors itself.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address
from fedsparse.errors import BackendError

__all__ = [
    "NormGradients",
    "Window",
    "average_pool",
    "average_pool_backward",
    "channel_sums",
    "combine",
    "group_norm",
    "group_norm_backward",
    "isa_of",
    "max_pool",
    "max_pool_backward",
    "moments",
    "norm_backward",
]


@cache
def isa_of(lanes: int) -> str:
    """Name of the instruction set whose registers hold `lanes` floats.

    Raises:
        BackendError: none that runs here does.
    """
    known: dict[int, str] = {count: name for name, count in reversed(_native.instruction_sets().items())}
    if lanes not in known:
        choices = ", ".join(f"{count} ({name})" for count, name in known.items())
        raise BackendError(f"no instruction set has {lanes} lanes; block activations by one of: {choices}")
    return known[lanes]


def moments(x: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (channels,) of every channel over images and pixels, exact to float32."""
    mean, variance = torch.empty(x.shape[1]), torch.empty(x.shape[1])
    _native.extension().moments(
        isa_of(x.shape[-1]), _sizes(x, batch), address(x), address(mean), address(variance), torch.get_num_threads()
    )
    return mean, variance


def combine(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    r: Tensor | None = None,
    r_scale: Tensor | None = None,
    r_shift: Tensor | None = None,
    relu: bool = False,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`scale * x + shift (+ r_scale * r + r_shift)`, then `max(., 0)` with `relu`; NaN stays NaN.

    Args:
        x: blocked activations.
        scale, shift: (channels,); None stands for 1 and 0.
        r: blocked activations of the shape of `x` to add, if any.
        r_scale, r_shift: (channels,); None stands for 1 and 0.
        relu: whether negative results become zero.
        out: where the result goes; may be `x`. None takes new memory.
    """
    z = torch.empty_like(x) if out is None else out
    _native.extension().combine(
        isa_of(x.shape[-1]),
        _sizes(x, x.shape[0] * x.shape[-1]),
        _term(x, scale, shift),
        _term(r, r_scale, r_shift),
        relu,
        address(z),
        torch.get_num_threads(),
    )
    return z


class NormGradients(NamedTuple):
    """Results of `norm_backward`; None where not wanted."""

    x: Tensor | None
    gated: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def norm_backward(
    grad: Tensor,
    batch: int,
    x: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    gate_bits: Tensor | None = None,
    gate_by_x: bool = False,
    mean: Tensor | None = None,
    inv_std: Tensor | None = None,
    center: Tensor | None = None,
    want_x: bool = True,
    want_gated: bool = False,
    want_affine: bool = False,
    in_place: bool = False,
) -> NormGradients:
    """Backward of `z = relu?(scale * x + shift + ...)`.

    Args:
        grad: blocked gradient of z.
        batch: number of images.
        x: blocked input of the norm; needed with `gate_by_x`, `mean` or `want_affine`. Or, as bfloat16 where the
            gradient is float32, `(x - center) * inv_std`, and `inv_std` with it.
        scale, shift: (channels,); None stands for 1 and 0.
        gate: blocked z; the gradient passes where it is positive.
        gate_bits: in place of the gate, one bit for each element (`activation.nonzero_bits`).
        gate_by_x: the gradient passes where `scale * x + shift` is positive; not together with a gate.
        mean: (channels,) when scale and shift came from the batch's own statistics, whose share x then gets as well.
        inv_std: (channels,), needed with `mean` or `want_affine`.
        center: (channels,) what x_hat subtracts, the mean or the running mean; None takes `mean`.
        want_x: gradient of x.
        want_gated: gradient past the gate, that of the other terms of the sum.
        want_affine: gradients of the norm's weight and bias (channels,): sums of the gated gradient times
            `(x - center) * inv_std`, and of the gated gradient.
        in_place: the gradient of x overwrites `grad`.
    """
    channels = grad.shape[1]
    grad_x = (grad if in_place else torch.empty_like(grad)) if want_x else None
    gated = torch.empty_like(grad) if want_gated else None
    weight = torch.empty(channels) if want_affine else None
    bias = torch.empty(channels) if want_affine else None
    x, x_hat = (None, x) if x is not None and x.dtype != grad.dtype else (x, None)
    inputs = tuple(map(address, (grad, gate, gate_bits, x_hat, mean, inv_std, mean if center is None else center)))
    outputs = tuple(map(address, (grad_x, gated, weight, bias)))
    _native.extension().norm_backward(
        isa_of(grad.shape[-1]),
        _sizes(grad, batch),
        _term(x, scale, shift),
        gate_by_x,
        inputs,
        outputs,
        torch.get_num_threads(),
    )
    return NormGradients(grad_x, gated, weight, bias)


def channel_sums(grad: Tensor, batch: int) -> Tensor:
    """Sum (channels,) of a blocked gradient over images and pixels: the gradient of a bias."""
    sums = torch.empty(grad.shape[1])
    _native.extension().channel_sums(
        isa_of(grad.shape[-1]), _sizes(grad, batch), address(grad), address(sums), torch.get_num_threads()
    )
    return sums


def group_norm(
    x: Tensor, batch: int, parts: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Every image normalised over the pixels of `parts` equal ranges of channels, then `* weight + bias` (channels,).

    Returns:
        z of the shape of x; mean and 1 / std (groups, parts, lanes), for `group_norm_backward`.
    """
    z = torch.empty_like(x)
    mean, inv_std = torch.empty((2, x.shape[0], parts, x.shape[-1]))
    _native.extension().group_norm(
        isa_of(x.shape[-1]),
        _sizes(x, batch),
        parts,
        _term(x, weight, bias),
        eps,
        address(z),
        address(mean),
        address(inv_std),
        torch.get_num_threads(),
    )
    return z, mean, inv_std


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    batch: int,
    parts: int,
    weight: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    *,
    want_affine: bool = True,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, and of weight and bias (channels,) if wanted; with `in_place` that of x overwrites `grad`."""
    grad_x = grad if in_place else torch.empty_like(grad)
    grad_weight = torch.empty(x.shape[1]) if want_affine else None
    grad_bias = torch.empty(x.shape[1]) if want_affine else None
    inputs = tuple(map(address, (grad, x, weight, mean, inv_std)))
    outputs = tuple(map(address, (grad_x, grad_weight, grad_bias)))
    _native.extension().group_norm_backward(
        isa_of(x.shape[-1]), _sizes(x, batch), parts, inputs, outputs, torch.get_num_threads()
    )
    return grad_x, grad_weight, grad_bias


class Window(NamedTuple):
    """Pooling windows, (vertical, horizontal) each; a window of `max_pool` has at most 256 places.

    `output` is given, so that ceil mode is the caller's affair; every window must touch the picture.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    output: tuple[int, int]


def max_pool(x: Tensor, batch: int, window: Window, *, want_winner: bool = True) -> tuple[Tensor, Tensor | None]:
    """Largest number of every window, NaN above all, and its place.

    Returns:
        y (groups, channels, *window.output, lanes) and, with `want_winner`, uint8 places of the same shape, counted in
        reading order inside the window: what `max_pool_backward` asks for.
    """
    y = _pooled(x, window)
    winner = torch.empty_like(y, dtype=torch.uint8) if want_winner else None
    _native.extension().max_pool(
        isa_of(x.shape[-1]),
        _sizes(x, batch),
        _flat(window),
        address(x),
        address(y),
        address(winner),
        torch.get_num_threads(),
    )
    return y, winner


def max_pool_backward(grad: Tensor, winner: Tensor, batch: int, window: Window, size: tuple[int, int]) -> Tensor:
    """Gradient of the input of `max_pool`, whose pictures were `size` = (height, width) pixels."""
    grad_x = _unpooled(grad, size)
    _native.extension().max_pool_backward(
        isa_of(grad.shape[-1]),
        _sizes(grad_x, batch),
        _flat(window),
        address(grad),
        address(winner),
        address(grad_x),
        torch.get_num_threads(),
    )
    return grad_x


def average_pool(x: Tensor, batch: int, window: Window, divisor: int = 0) -> Tensor:
    """Sum of every window over `divisor`; 0 stands for the number of its pixels inside the picture.

    Returns:
        y (groups, channels, *window.output, lanes).
    """
    y = _pooled(x, window)
    _native.extension().average_pool(
        isa_of(x.shape[-1]), _sizes(x, batch), _flat(window), divisor, address(x), address(y), torch.get_num_threads()
    )
    return y


def average_pool_backward(grad: Tensor, batch: int, window: Window, size: tuple[int, int], divisor: int = 0) -> Tensor:
    """Gradient of the input of `average_pool`, whose pictures were `size` = (height, width) pixels."""
    grad_x = _unpooled(grad, size)
    _native.extension().average_pool_backward(
        isa_of(grad.shape[-1]),
        _sizes(grad_x, batch),
        _flat(window),
        divisor,
        address(grad),
        address(grad_x),
        torch.get_num_threads(),
    )
    return grad_x


def _flat(window: Window) -> tuple[int, ...]:
    return tuple(number for pair in window for number in pair)


def _pooled(x: Tensor, window: Window) -> Tensor:
    return x.new_empty((*x.shape[:2], *window.output, x.shape[-1]))


def _unpooled(grad: Tensor, size: tuple[int, int]) -> Tensor:
    return grad.new_empty((*grad.shape[:2], *size, grad.shape[-1]))


def _sizes(x: Tensor, batch: int) -> tuple[int, int, int, int, bool]:
    return batch, x.shape[1], x.shape[2], x.shape[3], x.dtype == torch.bfloat16


def _term(data: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> tuple[int, int, int]:
    return address(data), address(scale), address(shift)
