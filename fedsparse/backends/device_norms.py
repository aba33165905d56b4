"""Batch norms and ReLUs that hold little for the backward pass, on a CUDA device: who computes them there.

A norm holds its input, or that normalised and rounded, and computes the rest of what it needs again. A ReLU behind it
holds nothing more; another one holds one bit for each element.

Activations are contiguous or batch-innermost; the latter are to kernels one contiguous picture, whose pixels are those
of all samples, and results lie as they do.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED
from fedsparse.backends.layout import BATCH_INNERMOST, CONTIGUOUS, Layout

__all__ = ["TRITON", "Kernels", "Norm", "Running", "available", "kernels_for", "lies"]

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


class Running(NamedTuple):
    """What a norm keeps of all batches; None: it does not.

    Attributes:
        mean, variance: `(channels,)`; both or none.
        batches: how many there were, `()` int64.
    """

    mean: Tensor | None
    variance: Tensor | None
    batches: Tensor | None = None


class Kernels(Protocol):
    """Tensors are `(batch, channels, ...)`, not empty, and all of a call lie alike, in one of the two layouts."""

    def relu(self, x: Tensor, *, inplace: bool) -> tuple[Tensor, Tensor]:
        """The ReLU, and one bit for each element in memory, int32: bit e % 32 of word e // 32 tells that e passes."""
        ...

    def gate(self, x: Tensor, bits: Tensor) -> Tensor:
        """x where its bit is set, 0 elsewhere; there may be more bits than elements."""
        ...

    def statistics(self, x: Tensor, running: Running, momentum: float, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and reciprocal deviation of every channel; what runs along is updated in place."""
        ...

    def norm(self, of: Norm, dtype: torch.dtype, rounded: Tensor | None, *, relu: bool) -> Tensor:
        """The norm, or its ReLU, as `dtype`; `rounded` is written with `(x - mean) * rstd`."""
        ...

    def norm_backward(self, grad: Tensor, of: Norm, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, of the dtype of `grad`, and of weight and bias, float32."""
        ...

    def norm_sum(self, of: Norm, rounded: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor]:
        """The ReLU of the norm's sum with `other`, in the dtype of that, and one bit for each element, int32."""
        ...

    def norm_sum_backward(self, grad: Tensor, of: Norm, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients as of `norm_backward`, and of what was added, of the dtype of `grad`."""
        ...


class _Triton:
    def relu(self, x: Tensor, *, inplace: bool) -> tuple[Tensor, Tensor]:
        lie = lies(x)
        y, bits = _kernel("relu_bitmask", "relu")(_picture(x, lie), inplace=inplace)
        return x if inplace else _restored(y, lie), bits

    def gate(self, x: Tensor, bits: Tensor) -> Tensor:
        lie = lies(x)
        return _restored(_kernel("relu_bitmask", "gate")(_picture(x, lie), bits), lie)

    def statistics(self, x: Tensor, running: Running, momentum: float, eps: float) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _kernel("batch_norm", "statistics")(
            _picture(x, lies(x)), *running, momentum=momentum, eps=eps
        )
        return found

    def norm(self, of: Norm, dtype: torch.dtype, rounded: Tensor | None, *, relu: bool) -> Tensor:
        lie, normal = lies(of.held), of.held.dtype != dtype
        held, rounded = _picture(of.held, lie), None if rounded is None else _picture(rounded, lie)
        y = _kernel("batch_norm", "norm")(held, *of[1:], relu=relu, dtype=dtype, normal=normal, rounded=rounded)
        return _restored(y, lie)

    def norm_backward(self, grad: Tensor, of: Norm, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        lie, normal = lies(of.held), of.held.dtype != grad.dtype
        grad_x, grad_weight, grad_bias = _kernel("batch_norm_backward", "norm_backward")(
            _picture(grad, lie), _picture(of.held, lie), *of[1:], relu=relu, normal=normal
        )
        return _restored(grad_x, lie), grad_weight, grad_bias

    def norm_sum(self, of: Norm, rounded: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor]:
        lie, normal = lies(of.held), of.held.dtype != other.dtype
        channels, count = other.shape[1], other.numel() // other.shape[1]
        bits = torch.empty((channels, -(-count // 32)), dtype=torch.int32, device=other.device)
        held, rounded = _picture(of.held, lie), None if rounded is None else _picture(rounded, lie)
        y = _kernel("batch_norm", "norm")(
            held, *of[1:], relu=True, dtype=other.dtype, normal=normal, rounded=rounded,
            other=_picture(other, lie), bits=bits,
        )  # fmt: skip
        return _restored(y, lie), bits

    def norm_sum_backward(self, grad: Tensor, of: Norm, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        lie, normal, gated = lies(of.held), of.held.dtype != grad.dtype, torch.empty_like(grad)
        grad_x, grad_weight, grad_bias = _kernel("batch_norm_backward", "norm_backward")(
            _picture(grad, lie), _picture(of.held, lie), *of[1:], relu=True, normal=normal,
            bits=bits, gated=_picture(gated, lie),
        )  # fmt: skip
        return _restored(grad_x, lie), grad_weight, grad_bias, gated


TRITON: Kernels = _Triton()


def available(device: torch.device) -> bool:
    """Whether there are kernels for tensors of a device."""
    return device.type == "cuda" and _native.has_triton()


def kernels_for(x: Tensor) -> Kernels | None:
    """Who computes norms and ReLUs of `x` where it is; None where torch does."""
    fits = x.dtype in STORED and 0 < x.numel() < _LIMIT and lies(x).holds(x)
    return TRITON if fits and available(x.device) else None


def lies(x: Tensor) -> Layout:
    """How x lies, if it lies in one of the two layouts."""
    return CONTIGUOUS if x.is_contiguous() else BATCH_INNERMOST


def _picture(x: Tensor, lie: Layout) -> Tensor:
    """A contiguous view, `(1, channels, ...)` of what is batch-innermost."""
    return lie.in_memory(x).unsqueeze(0) if lie.innermost else x


def _restored(picture: Tensor, lie: Layout) -> Tensor:
    """What `_picture` made the view of."""
    return picture.squeeze(0).movedim(-1, 0) if lie.innermost else picture


def _kernel(module: str, name: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] = getattr(import_module(f"fedsparse.kernels.{module}"), name)
    return kernel
