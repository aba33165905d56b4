"""Optimiser steps over flat values, in one pass and one launch.

A launch for each parameter, where the CUDA kernels take all of them at once: Triton would want their addresses in a
tensor on the device, and gradients lie elsewhere at every step, so that a copy to the device would come before each.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = ["adamw_", "adamw_reference", "cost", "cost_adamw", "sgd_momentum_", "sgd_momentum_reference"]

BLOCK = 1024  # values a program updates


@triton.jit
def _sgd_momentum_kernel(
    values,
    grad,
    momentum,
    n,
    lr,
    mu,
    weight_decay,
    fresh,
    NESTEROV: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    FIRST_STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # int64: a flat buffer may hold more than 2^31 values
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(values + at, mask=inside)
    direction = tl.load(grad + at, mask=inside) + weight_decay * value
    if HAS_MOMENTUM:
        # the first step never reads the buffer: it may hold anything, NaN included
        buffer = direction if FIRST_STEP else mu * tl.load(momentum + at, mask=inside) + fresh * direction
        tl.store(momentum + at, buffer, mask=inside)
        direction = direction + mu * buffer if NESTEROV else buffer
    tl.store(values + at, value - lr * direction, mask=inside)


def sgd_momentum_(
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
    """One step of torch.optim.SGD over flat values, in place.

    Args:
        values: (n,) float32, contiguous; updated.
        grad: (n,) float32, contiguous.
        momentum: (n,) float32, contiguous; updated, and only written on the first step. Not touched where
            `momentum_factor` is 0.
        first_step: the buffer starts as the gradient, whatever the dampening.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above.
    """
    _check("sgd_momentum_", values=values, grad=grad, momentum=momentum)
    n = values.numel()
    if n == 0:
        return
    with torch.cuda.device(values.get_device()):  # -1, no device, for the interpreter
        _sgd_momentum_kernel[(triton.cdiv(n, BLOCK),)](
            values,
            grad,
            momentum,
            n,
            lr,
            momentum_factor,
            weight_decay,
            1.0 - dampening,
            NESTEROV=nesterov,
            HAS_MOMENTUM=momentum_factor != 0.0,
            FIRST_STEP=first_step,
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
    values,
    grad,
    average,
    square,
    n,
    step,  # a number, or where one is
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
    BLOCK: tl.constexpr,
):
    # float64: in float32 1 - beta^step has lost half its digits to rounding where beta is close to 1
    number = tl.full((), tl.load(step) if COUNTED_THERE else step, tl.float64)
    left1, left2 = 1.0 - tl.exp(number * log1), 1.0 - tl.exp(number * log2)
    step_size, scale = lr / left1.to(tl.float32), 1.0 / tl.sqrt_rn(left2.to(tl.float32))
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value, slope = tl.load(values + at, mask=inside), tl.load(grad + at, mask=inside)
    mean = beta1 * tl.load(average + at, mask=inside) + fresh1 * slope
    spread = beta2 * tl.load(square + at, mask=inside) + fresh2 * slope * slope
    tl.store(average + at, mean, mask=inside)
    tl.store(square + at, spread, mask=inside)
    # rounded as torch rounds: the step is a quotient, not a product with an approximate reciprocal
    change = tl.div_rn(mean, tl.sqrt_rn(spread) * scale + eps)
    tl.store(values + at, shrink * value - step_size * change, mask=inside)


def adamw_(
    values: Tensor,
    grad: Tensor,
    average: Tensor,
    square: Tensor,
    *,
    step: int | Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of torch.optim.AdamW over flat values, in place: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2.

    Args:
        values: (n,) float32, contiguous; updated.
        grad: (n,) float32, contiguous.
        average, square: (n,) float32, contiguous; running means of gradient and squared gradient, zeros at first.
        step: number of this step, from 1; a tensor of one float32 is only read on its device.

    Raises:
        ValueError: shapes, dtypes, devices or strides differ from the above, or step is a number below 1.
    """
    _check("adamw_", values=values, grad=grad, average=average, square=square)
    counted_there = isinstance(step, Tensor)
    if isinstance(step, Tensor):
        if step.dtype != torch.float32 or step.numel() != 1 or step.device != values.device:
            raise ValueError(
                f"adamw_: step must be one float32 on {values.device}, got {step.dtype} of shape {tuple(step.shape)} "
                f"on {step.device}"
            )
    elif step < 1:
        raise ValueError(f"adamw_: steps count from 1, got {step}")
    n = values.numel()
    if n == 0:
        return
    beta1, beta2 = betas
    log1, log2 = (math.log(beta) if beta > 0.0 else -math.inf for beta in betas)
    with torch.cuda.device(values.get_device()):
        _adamw_kernel[(triton.cdiv(n, BLOCK),)](
            values,
            grad,
            average,
            square,
            n,
            step if counted_there else float(step),
            1.0 - lr * weight_decay,
            beta1,
            beta2,
            1.0 - beta1,
            1.0 - beta2,
            log1,
            log2,
            lr,
            eps,
            COUNTED_THERE=counted_there,
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
