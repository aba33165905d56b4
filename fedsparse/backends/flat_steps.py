"""Optimiser steps over the values of many parameters on a CUDA device: one pass, and one launch for all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse._native import address, kernels_at, launch

__all__ = ["AdamwArrays", "AdamwRule", "SgdArrays", "SgdRule", "adamw_steps", "sgd_steps", "takes"]


class SgdRule(NamedTuple):
    """Settings of a step, as `torch.optim.SGD` names them."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


class SgdArrays(NamedTuple):
    """What belongs to a parameter, all of one size.

    Attributes:
        values: updated.
        grad: only read.
        momentum: updated; None where the rule has none.
    """

    values: Tensor
    grad: Tensor
    momentum: Tensor | None


class AdamwRule(NamedTuple):
    """Settings of a step, as `torch.optim.AdamW` names them."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float


class AdamwArrays(NamedTuple):
    """What belongs to a parameter, all of one size but `step`.

    Attributes:
        values: updated.
        grad: only read.
        mean, square: running means of gradient and squared gradient, updated; zeros at first.
        step: `()`, steps done, increased by one.
    """

    values: Tensor
    grad: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor


def takes(*tensors: Tensor) -> bool:
    """Whether a kernel can step over these: contiguous float32 on a device that has one."""
    plain = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    return plain and all(kernels_at(tensor) is not None for tensor in tensors)


def sgd_steps(arrays: Sequence[SgdArrays], rule: SgdRule, *, first_step: bool) -> None:
    """One step of `torch.optim.SGD` in place.

    Args:
        arrays: of parameters on one device, at least one; tensors that `takes` takes.
        rule: settings.
        first_step: momentum becomes the gradient, whatever the dampening, and is only written.
    """
    where = arrays[0].values
    if kernels_at(where) == "cuda":
        launch(
            "cuda_sgd_momentum", where, *_tables(arrays), _sizes(arrays), rule.lr, rule.momentum, rule.weight_decay,
            rule.dampening, rule.nesterov, first_step,
        )  # fmt: skip
        return
    from fedsparse.kernels.flat_optimizer import sgd_momentum_

    values, grads = ([tensor.view(-1) for tensor in field] for field in list(zip(*arrays, strict=True))[:2])
    momenta = [(row.values if row.momentum is None else row.momentum).view(-1) for row in arrays]
    sgd_momentum_(
        values, grads, momenta, lr=rule.lr, momentum_factor=rule.momentum, weight_decay=rule.weight_decay,
        dampening=rule.dampening, nesterov=rule.nesterov, first_step=first_step,
    )  # fmt: skip


def adamw_steps(arrays: Sequence[AdamwArrays], rule: AdamwRule, *, counted_there: bool) -> None:
    """One step of `torch.optim.AdamW` in place.

    Args:
        arrays: of parameters on one device, at least one; tensors that `takes` takes, but for `step`.
        rule: settings.
        counted_there: `step` is one that `takes` takes, on the parameter's device: nothing waits for it, and a CUDA
            graph goes on counting. Else a number in main memory, which a graph would keep.
    """
    where = arrays[0].values
    if not counted_there:
        for each in arrays:
            each.step.add_(1)
    if kernels_at(where) == "cuda":
        *tables, counters = _tables(arrays)
        counts = (counters, []) if counted_there else ([], [int(each.step) for each in arrays])
        launch(
            "cuda_adamw", where, *tables, _sizes(arrays), *counts, 0, rule.lr, *rule.betas, rule.eps, rule.weight_decay
        )
        return
    from fedsparse.kernels.flat_optimizer import adamw_

    *fields, steps = zip(*arrays, strict=True)
    if counted_there:
        torch._foreach_add_(steps, 1)
    flat = [[tensor.view(-1) for tensor in field] for field in fields]
    adamw_(*flat, steps=steps if counted_there else [int(step) for step in steps], **rule._asdict())


def _tables(arrays: Sequence[SgdArrays] | Sequence[AdamwArrays]) -> list[list[int]]:
    """Addresses, a list for each field."""
    return [[address(tensor) for tensor in field] for field in zip(*arrays, strict=True)]


def _sizes(arrays: Sequence[SgdArrays] | Sequence[AdamwArrays]) -> list[int]:
    return [each.values.numel() for each in arrays]
