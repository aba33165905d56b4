"""What waits until it is known whether a ReLU follows: a batch norm on a device, or its sum with another tensor.

What has to be known of the whole batch, statistics, is there; what is element by element waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fedsparse.backends.device_norms import Kernels, Norm, lies
from fedsparse.blocked.functions import apply, final
from fedsparse.errors import BackendError

__all__ = ["Waiting", "WaitingSum"]


@dataclass(frozen=True)
class Waiting:
    """A batch norm of which only the statistics are computed.

    Attributes:
        x, weight, bias: differentiable; weight or bias may be None.
        mean, rstd: of the batch, `(channels,)`.
        kernels: who computes.
        dtype: in which the normalised x is held for the backward pass; None: x itself is.
        version: of x.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    kernels: Kernels
    dtype: torch.dtype | None
    version: int

    def of(self, held: Tensor) -> Norm:
        """The norm, without history, of what is held of x.

        Raises:
            BackendError: x was changed in place meanwhile.
        """
        _require_unchanged(self.x, self.version, "the input of a batch norm")
        weight, bias = (None if t is None else t.detach() for t in (self.weight, self.bias))
        return Norm(held, self.mean, self.rstd, weight, bias)

    @property
    def sources(self) -> tuple[Tensor | None, ...]:
        """What it is computed from, differentiable."""
        return self.x, self.weight, self.bias

    def held(self) -> Tensor:
        """What its gradients are computed from: x, or memory that is written when it is computed."""
        rounds = self.dtype not in (None, self.x.dtype)
        return torch.empty_like(self.x, dtype=self.dtype) if rounds else self.x.detach()

    def computed(self, *, relu: bool) -> tuple[Tensor, Norm | None]:
        """The norm, or its ReLU, with its history, and what it holds for its gradients."""
        held = self.held()
        with torch.enable_grad():
            y = apply(_Computed, self.x, self.weight, self.bias, self, held, relu)
        return y, self.of(held)

    def numbers(self) -> Tensor:
        """The norm without history."""
        x = self.x.detach()
        return self.kernels.norm(self.of(x), x.dtype, None, relu=False)

    def gradients(self, grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of its sources, as far as they are wanted, for that of the norm."""
        return _gradients(self.kernels, self.of(self.x.detach()), grad, wanted, relu=False)


@dataclass(frozen=True)
class WaitingSum:
    """The sum of a batch norm that waits and another tensor.

    Attributes:
        norm: what waits.
        other: differentiable, of the same shape and dtype, and lying alike.
        version: of `other`.
    """

    norm: Waiting
    other: Tensor
    version: int

    @property
    def x(self) -> Tensor:
        """A tensor of the sum's shape."""
        return self.norm.x

    @property
    def sources(self) -> tuple[Tensor | None, ...]:
        """As of `Waiting`."""
        return *self.norm.sources, self.other

    def computed(self, *, relu: bool) -> tuple[Tensor, Norm | None]:
        """The sum, or its ReLU, with its history; no norm that others could share.

        Raises:
            BackendError: x or `other` was changed in place meanwhile.
        """
        other = self._added()
        with torch.enable_grad():
            if relu:
                return apply(_ComputedSum, *self.sources, self.norm, self.norm.held()), None
            return self.norm.computed(relu=False)[0] + other, None

    def numbers(self) -> Tensor:
        """The sum without history."""
        return self.norm.numbers() + self._added().detach()

    def gradients(self, grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """As of `Waiting`."""
        return [*self.norm.gradients(grad, wanted[:3]), final(grad) if wanted[3] else None]

    def _added(self) -> Tensor:
        _require_unchanged(self.other, self.version, "what was added to a batch norm")
        return self.other


def _require_unchanged(tensor: Tensor, version: int, what: str) -> None:
    if tensor._version != version:
        raise BackendError(
            f"{what}, of shape {tuple(tensor.shape)}, was changed in place before the norm's result was used, which "
            "is computed from it as it was; use the function that returns a new tensor"
        )


class _Computed(Function):
    """A norm or its ReLU; `held` is what its gradients are computed from, and is written if it is not x itself."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, waiting: Waiting, held: Tensor, relu: bool
    ) -> Tensor:
        ctx.kernels, ctx.relu = waiting.kernels, relu
        ctx.save_for_backward(held, waiting.mean, waiting.rstd, weight, bias)
        rounded = held if held.dtype != x.dtype else None
        return waiting.kernels.norm(waiting.of(x.detach()), x.dtype, rounded, relu=relu)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = _gradients(ctx.kernels, Norm(*ctx.saved_tensors), grad, ctx.needs_input_grad[:3], relu=ctx.relu)
        return (*found, None, None, None)


class _ComputedSum(Function):
    """The ReLU of a norm's sum with another tensor, which saves one bit for each element beside what the norm holds."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        other: Tensor,
        waiting: Waiting,
        held: Tensor,
    ) -> Tensor:
        rounded = held if held.dtype != x.dtype else None
        y, bits = waiting.kernels.norm_sum(waiting.of(x.detach()), rounded, other.detach())
        ctx.kernels = waiting.kernels
        ctx.save_for_backward(bits, held, waiting.mean, waiting.rstd, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, *saved = ctx.saved_tensors
        norm = Norm(*saved)
        found = ctx.kernels.norm_sum_backward(lies(norm.held).of(grad), norm, bits)
        return (*_cast(found, norm, grad.dtype, ctx.needs_input_grad[:4]), None, None)


def _gradients(
    kernels: Kernels, norm: Norm, grad: Tensor, wanted: Sequence[bool], *, relu: bool
) -> list[Tensor | None]:
    """Of x, weight and bias, as far as they are wanted."""
    found = kernels.norm_backward(lies(norm.held).of(grad), norm, relu=relu)
    return _cast(found, norm, grad.dtype, wanted)


def _cast(found: Sequence[Tensor], norm: Norm, dtype: torch.dtype, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of x, weight and bias, and what else there is, in the dtypes of those."""
    dtypes = (dtype, *(dtype if p is None else p.dtype for p in (norm.weight, norm.bias)), dtype)
    return [final(g.to(its)) if want else None for g, its, want in zip(found, dtypes, wanted, strict=False)]
