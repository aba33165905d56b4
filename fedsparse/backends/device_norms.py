"""Batch norms and ReLUs that hold little for the backward pass, on a CUDA device: who computes them there.

A norm holds its input, or that normalised and rounded, and computes the rest of what it needs again. A ReLU behind it
holds nothing more; another one holds one bit for each element.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED

__all__ = ["TRITON", "Kernels", "Norm", "available", "kernels_for"]

_LIMIT = 1 << 31  # elements: offsets within a channel have 32 bits


class Norm(NamedTuple):
    """What a batch norm is computed from: `(x - mean) * rstd * weight + bias`.

    Attributes:
        held: x, or, in another dtype than the norm's result, `(x - mean) * rstd`.
        mean, rstd: `(channels,)` float32; rstd is the reciprocal of the deviation.
        weight, bias: `(channels,)`, or None for 1 and 0.
    """

    held: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Kernels(Protocol):
    """Tensors are `(batch, channels, ...)`, contiguous and not empty."""

    def relu(self, x: Tensor, *, inplace: bool) -> tuple[Tensor, Tensor]:
        """The ReLU, and one bit for each element, int32: bit e % 32 of word e // 32 is set where element e passes."""
        ...

    def gate(self, x: Tensor, bits: Tensor) -> Tensor:
        """x where its bit is set, 0 elsewhere; there may be more bits than elements."""
        ...

    def statistics(
        self, x: Tensor, running: tuple[Tensor | None, Tensor | None], momentum: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and reciprocal deviation of every channel; the running mean and variance are updated in place."""
        ...

    def norm(self, of: Norm, dtype: torch.dtype, rounded: Tensor | None, *, relu: bool) -> Tensor:
        """The norm, or its ReLU, as `dtype`; `rounded` is written with `(x - mean) * rstd`."""
        ...

    def norm_backward(self, grad: Tensor, of: Norm, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, of the dtype of `grad`, and of weight and bias, float32."""
        ...


class _Triton:
    def relu(self, x: Tensor, *, inplace: bool) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _kernel("relu_bitmask", "relu")(x, inplace=inplace)
        return found

    def gate(self, x: Tensor, bits: Tensor) -> Tensor:
        result: Tensor = _kernel("relu_bitmask", "gate")(x, bits)
        return result

    def statistics(
        self, x: Tensor, running: tuple[Tensor | None, Tensor | None], momentum: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _kernel("batch_norm", "statistics")(x, *running, momentum=momentum, eps=eps)
        return found

    def norm(self, of: Norm, dtype: torch.dtype, rounded: Tensor | None, *, relu: bool) -> Tensor:
        normal = of.held.dtype != dtype
        y: Tensor = _kernel("batch_norm", "norm")(*of, relu=relu, dtype=dtype, normal=normal, rounded=rounded)
        return y

    def norm_backward(self, grad: Tensor, of: Norm, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        normal = of.held.dtype != grad.dtype
        found: tuple[Tensor, Tensor, Tensor] = _kernel("batch_norm", "norm_backward")(
            grad, *of, relu=relu, normal=normal
        )
        return found


TRITON: Kernels = _Triton()


def available(device: torch.device) -> bool:
    """Whether there are kernels for tensors of a device."""
    return device.type == "cuda" and _native.has_triton()


def kernels_for(x: Tensor) -> Kernels | None:
    """Who computes norms and ReLUs of `x` where it is; None where torch does."""
    fits = x.dtype in STORED and 0 < x.numel() < _LIMIT and x.is_contiguous()
    return TRITON if fits and available(x.device) else None


def _kernel(module: str, name: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] = getattr(import_module(f"fedsparse.kernels.{module}"), name)
    return kernel
