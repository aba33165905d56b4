"""Autograd of pooling and group norm on blocked activations."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from fedsparse.backends.blocked import (
    Window,
    average_pool,
    average_pool_backward,
    group_norm,
    group_norm_backward,
    max_pool,
    max_pool_backward,
)
from fedsparse.blocked.functions import final

__all__ = ["AveragePool", "GroupNorm", "MaxPool"]


def _size(data: Tensor) -> tuple[int, int]:
    return data.shape[2], data.shape[3]


class MaxPool(Function):
    """Largest of each window; one byte per output says which, for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, batch: int) -> Tensor:
        y, winner = max_pool(x, batch, window, want_winner=ctx.needs_input_grad[0])
        ctx.save_for_backward(winner)
        ctx.arguments = batch, window, _size(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (winner,) = ctx.saved_tensors
        return final(max_pool_backward(grad.contiguous(), winner, *ctx.arguments)), None, None


class AveragePool(Function):
    """Mean of each window, by `divisor` or, where it is 0, by the pixels inside the picture."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, divisor: int, batch: int) -> Tensor:
        ctx.arguments = batch, window, _size(x), divisor
        return average_pool(x, batch, window, divisor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        return final(average_pool_backward(grad.contiguous(), *ctx.arguments)), None, None, None


class GroupNorm(Function):
    """Group norm with statistics of each image."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, parts: int, eps: float, batch: int
    ) -> Tensor:
        z, mean, inv_std = group_norm(x, batch, parts, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.parts, ctx.batch = parts, batch
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        grads = group_norm_backward(grad.contiguous(), x, ctx.batch, ctx.parts, weight, mean, inv_std, want_affine=True)
        wanted = (final(g) if w else None for g, w in zip(grads, ctx.needs_input_grad, strict=False))
        return (*wanted, None, None, None)
