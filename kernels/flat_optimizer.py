"""Optimiser steps over flat values: one pass and one launch for all kept weights of a model."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["cost", "sgd_momentum_", "sgd_momentum_reference"]

BLOCK = 1024  # values a program updates
FUSION = True  # multiply-adds round once; said here because Triton's default differs between versions


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
    _check(values, grad, momentum)
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


def _check(values: Tensor, grad: Tensor, momentum: Tensor) -> None:
    for name, tensor in (("values", values), ("grad", grad), ("momentum", momentum)):
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(
                f"sgd_momentum_: {name} must be a contiguous float32 tensor of one dimension, got "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}"
            )
        if tensor.shape != values.shape or tensor.device != values.device:
            raise ValueError(
                f"sgd_momentum_: {name} has {tensor.numel()} entries on {tensor.device}, values has "
                f"{values.numel()} on {values.device}; both must agree"
            )
