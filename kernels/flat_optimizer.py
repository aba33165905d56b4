"""Optimiser steps over the flat values of many parameters, in one pass and one launch.

Addresses and sizes travel with the launch: nothing is copied to the device before it, wherever gradients lie, and a
captured graph holds them itself. Kernels are compiled for every number of parameters.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = [
    "MOST",
    "adamw_",
    "adamw_reference",
    "cost",
    "cost_adamw",
    "sgd_momentum_",
    "sgd_momentum_reference",
]

BLOCK = 1024  # values a program updates; programs do not cross parameters
MOST = 64  # parameters of a launch: what drivers of every age take with it are 4 KB
# Sizes and programs are passed so many-fold: Triton compiles anew for a number that is 1, or that 16 divides or no
# longer divides, and sizes change with masks.
GRAIN = tl.constexpr(16)


@triton.jit
def _of_program(each, first, COUNT: tl.constexpr, DTYPE: tl.constexpr = tl.int64):
    """The entry of the last parameter whose first program is not behind this one."""
    found = tl.full((), each[0], DTYPE)
    for i in tl.static_range(1, COUNT):
        found = tl.where(tl.program_id(0) * GRAIN >= first[i], tl.full((), each[i], DTYPE), found)
    return found


@triton.jit
def _pointer(addresses, first, COUNT: tl.constexpr):
    return _of_program(addresses, first, COUNT).to(tl.pointer_type(tl.float32))


@triton.jit
def _places(sizes, first, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Which values of its parameter a program updates, and which of them there are."""
    # int64: a flat buffer may hold more than 2^31 values
    at = (tl.program_id(0) - _of_program(first, first, COUNT) // GRAIN) * BLOCK + tl.arange(0, BLOCK)
    return at, at < _of_program(sizes, first, COUNT) // GRAIN


@triton.jit
def _sgd_momentum_kernel(
    all_values,
    all_grads,
    all_momenta,
    sizes,
    first,
    lr,
    mu,
    weight_decay,
    fresh,
    NESTEROV: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    FIRST_STEP: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    values, grad = _pointer(all_values, first, COUNT), _pointer(all_grads, first, COUNT)
    at, inside = _places(sizes, first, COUNT, BLOCK)
    value = tl.load(values + at, mask=inside)
    direction = tl.load(grad + at, mask=inside) + weight_decay * value
    if HAS_MOMENTUM:
        momentum = _pointer(all_momenta, first, COUNT)
        # the first step never reads the buffer: it may hold anything, NaN included
        buffer = direction if FIRST_STEP else mu * tl.load(momentum + at, mask=inside) + fresh * direction
        tl.store(momentum + at, buffer, mask=inside)
        direction = direction + mu * buffer if NESTEROV else buffer
    tl.store(values + at, value - lr * direction, mask=inside)


def sgd_momentum_(
    values: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
) -> None:
    """One step of torch.optim.SGD over the flat values of parameters on one device, in place.

    Args:
        values: (n,) float32 of each, contiguous; updated.
        grads: (n,) float32, contiguous.
        momenta: (n,) float32, contiguous; updated, and only written on the first step. Not touched where
            `momentum_factor` is 0.
        first_step: the buffer starts as the gradient, whatever the dampening.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above.
    """
    for value, grad, momentum in zip(values, grads, momenta, strict=True):
        _check("sgd_momentum_", values=value, grad=grad, momentum=momentum)
    for some in _launches(values):
        addresses = (_addresses([each[i] for i in some.parameters]) for each in (values, grads, momenta))
        with torch.cuda.device(values[0].get_device()):  # -1, no device, for the interpreter
            _sgd_momentum_kernel[(some.programs,)](
                *addresses,
                some.sizes,
                some.first,
                lr,
                momentum_factor,
                weight_decay,
                1.0 - dampening,
                NESTEROV=nesterov,
                HAS_MOMENTUM=momentum_factor != 0.0,
                FIRST_STEP=first_step,
                COUNT=len(some.parameters),
                BLOCK=BLOCK,
                enable_fp_fusion=FUSION,
            )


def sgd_momentum_reference(
    values: Tensor,
    grad: Tensor,
    momentum: Tensor,
    *,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
) -> None:
    """What `sgd_momentum_` computes, in plain torch and for any floating dtype."""
    direction = grad + weight_decay * values
    if momentum_factor != 0.0:
        momentum.copy_(direction if first_step else momentum_factor * momentum + (1.0 - dampening) * direction)
        direction = direction + momentum_factor * momentum if nesterov else momentum
    values.sub_(lr * direction)


def cost(n: int) -> tuple[int, int]:
    """Floating-point operations and bytes of memory traffic of one step over n values with momentum."""
    # decay 2, momentum 3, value 2; reads values, grad, momentum and writes values, momentum
    return 7 * n, 20 * n


@triton.jit
def _adamw_kernel(
    all_values,
    all_grads,
    all_averages,
    all_squares,
    sizes,
    first,
    steps,  # numbers, or where they are
    shrink,
    beta1,
    beta2,
    fresh1,
    fresh2,
    log1,
    log2,
    lr,
    eps,
    COUNTED_THERE: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # float64: in float32 1 - beta^step has lost half its digits to rounding where beta is close to 1
    if COUNTED_THERE:
        number = tl.load(_pointer(steps, first, COUNT)).to(tl.float64)
    else:
        number = _of_program(steps, first, COUNT, tl.float64)
    left1, left2 = 1.0 - tl.exp(number * log1), 1.0 - tl.exp(number * log2)
    step_size, scale = lr / left1.to(tl.float32), 1.0 / tl.sqrt_rn(left2.to(tl.float32))
    values, grad = _pointer(all_values, first, COUNT), _pointer(all_grads, first, COUNT)
    average, square = _pointer(all_averages, first, COUNT), _pointer(all_squares, first, COUNT)
    at, inside = _places(sizes, first, COUNT, BLOCK)
    value, slope = tl.load(values + at, mask=inside), tl.load(grad + at, mask=inside)
    mean = beta1 * tl.load(average + at, mask=inside) + fresh1 * slope
    spread = beta2 * tl.load(square + at, mask=inside) + fresh2 * slope * slope
    tl.store(average + at, mean, mask=inside)
    tl.store(square + at, spread, mask=inside)
    # rounded as torch rounds: the step is a quotient, not a product with an approximate reciprocal
    change = tl.div_rn(mean, tl.sqrt_rn(spread) * scale + eps)
    tl.store(values + at, shrink * value - step_size * change, mask=inside)


def adamw_(
    values: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    steps: Sequence[int | Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of torch.optim.AdamW over the flat values of parameters on one device, in place: Loshchilov and Hutter,
    arXiv 1711.05101, Algorithm 2.

    Args:
        values: (n,) float32 of each, contiguous; updated.
        grads: (n,) float32, contiguous.
        averages, squares: (n,) float32, contiguous; running means of gradient and squared gradient, zeros at first.
        steps: numbers of this step, from 1; or, for all, tensors of one float32, which are only read on their device.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, or a step is a number below 1.
    """
    for value, grad, average, square, step in zip(values, grads, averages, squares, steps, strict=True):
        _check("adamw_", values=value, grad=grad, average=average, square=square)
        _check_step(step, value.device)
    beta1, beta2 = betas
    log1, log2 = (math.log(beta) if beta > 0.0 else -math.inf for beta in betas)
    counters = [step for step in steps if isinstance(step, Tensor)]
    for some in _launches(values):
        addresses = (_addresses([each[i] for i in some.parameters]) for each in (values, grads, averages, squares))
        with torch.cuda.device(values[0].get_device()):
            _adamw_kernel[(some.programs,)](
                *addresses,
                some.sizes,
                some.first,
                _addresses([counters[i] for i in some.parameters])
                if counters
                else tuple(float(steps[i]) for i in some.parameters),
                1.0 - lr * weight_decay,
                beta1,
                beta2,
                1.0 - beta1,
                1.0 - beta2,
                log1,
                log2,
                lr,
                eps,
                COUNTED_THERE=len(counters) > 0,
                COUNT=len(some.parameters),
                BLOCK=BLOCK,
                enable_fp_fusion=FUSION,
            )


def adamw_reference(
    values: Tensor,
    grad: Tensor,
    average: Tensor,
    square: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """What `adamw_` computes, in plain torch and for any floating dtype."""
    beta1, beta2 = betas
    average.copy_(beta1 * average + (1.0 - beta1) * grad)
    square.copy_(beta2 * square + (1.0 - beta2) * grad * grad)
    change = average / (square.sqrt() * (1.0 - beta2**step) ** -0.5 + eps)
    values.copy_((1.0 - lr * weight_decay) * values - lr / (1.0 - beta1**step) * change)


def cost_adamw(n: int) -> tuple[int, int]:
    """Floating-point operations and bytes of memory traffic of one AdamW step over n values."""
    # mean 3, square 4, step 4, value 3; reads values, grad and both means, writes all but grad
    return 14 * n, 28 * n


class _Launch(NamedTuple):
    """Some parameters, none of them empty.

    Attributes:
        parameters: their places among all.
        sizes: their values, `GRAIN`-fold.
        first: their first programs, `GRAIN`-fold.
        programs: of all.
    """

    parameters: list[int]
    sizes: tuple[int, ...]
    first: tuple[int, ...]
    programs: int


def _launches(values: Sequence[Tensor]) -> Iterator[_Launch]:
    """All parameters that hold something, `MOST` at a time."""
    held = [i for i, each in enumerate(values) if each.numel() > 0]
    for begin in range(0, len(held), MOST):
        some = held[begin : begin + MOST]
        sizes = [values[i].numel() for i in some]
        *first, programs = accumulate((triton.cdiv(size, BLOCK) for size in sizes), initial=0)
        grain = GRAIN.value
        yield _Launch(some, tuple(grain * size for size in sizes), tuple(grain * place for place in first), programs)


def _addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _check_step(step: int | Tensor, device: torch.device) -> None:
    if isinstance(step, Tensor):
        if step.dtype != torch.float32 or step.numel() != 1 or step.device != device:
            raise ValueError(
                f"adamw_: step must be one float32 on {device}, got {step.dtype} of shape {tuple(step.shape)} "
                f"on {step.device}"
            )
    elif step < 1:
        raise ValueError(f"adamw_: steps count from 1, got {step}")


def _check(step: str, **tensors: Tensor) -> None:
    values = tensors["values"]
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"{step}: {name} must be a contiguous float32 tensor of one dimension, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            )
        if tensor.shape != values.shape or tensor.device != values.device:
            raise ValueError(
                f"{step}: {name} has {tensor.numel()} entries on {tensor.device}, values has "
                f"{values.numel()} on {values.device}; both must agree"
            )
