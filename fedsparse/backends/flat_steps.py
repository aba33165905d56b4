"""Optimiser steps over flat values on a CUDA device: one pass and one launch, by CUDA or Triton."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address, launch

__all__ = ["SgdRule", "sgd_step", "takes"]


class SgdRule(NamedTuple):
    """Settings of a step, as `torch.optim.SGD` names them."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


def takes(*tensors: Tensor) -> bool:
    """Whether a kernel can step over these: contiguous float32 on a device that has one."""
    plain = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    return plain and all(_native.on_device(t) or (t.device.type == "cuda" and _native.has_triton()) for t in tensors)


def sgd_step(values: Tensor, grad: Tensor, momentum: Tensor | None, rule: SgdRule, *, first_step: bool) -> None:
    """One step of `torch.optim.SGD` in place, for tensors that `takes` takes.

    Args:
        values: updated.
        grad: of the same size, as all of them.
        momentum: updated, and only written on the first step; None where the rule has none.
        rule: settings.
        first_step: momentum becomes the gradient, whatever the dampening.
    """
    if _native.on_device(values):
        launch(
            "cuda_sgd_momentum", values, address(values), address(grad), address(momentum), values.numel(), rule.lr,
            rule.momentum, rule.weight_decay, rule.dampening, rule.nesterov, first_step,
        )  # fmt: skip
        return
    from fedsparse.kernels.flat_optimizer import sgd_momentum_

    flat = [tensor.view(-1) for tensor in (values, grad, values if momentum is None else momentum)]
    sgd_momentum_(
        *flat, lr=rule.lr, momentum_factor=rule.momentum, weight_decay=rule.weight_decay, dampening=rule.dampening,
        nesterov=rule.nesterov, first_step=first_step,
    )  # fmt: skip
