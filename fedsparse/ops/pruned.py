"""The product whose weight gradient sees the largest elements of its input only (scaled activation pruning)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fedsparse.backends.activation import Pruning, keep, restore
from fedsparse.ops.products import product

__all__ = ["pruned_product"]

# (index, shape, geometry, backend), as `product` takes them.
_Weight = tuple[Any, ...]


class _PrunedProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, weight: _Weight, pruning: Pruning) -> Tensor:
        kept = keep(x, pruning)
        ctx.save_for_backward(values, *kept)
        ctx.form, ctx.shape, ctx.dtype = type(kept)._make, tuple(x.shape), x.dtype
        ctx.weight, ctx.has_bias = weight, bias is not None
        return product(x, values, bias, *weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, *kept = ctx.saved_tensors
        want_x, want_values, want_bias = ctx.needs_input_grad[:3]
        # The op asks for an input even where only its shape matters.
        x = restore(ctx.form(kept), ctx.shape, ctx.dtype) if want_values else grad.new_empty(ctx.shape)
        grad_x = grad_values = None
        if want_x or want_values:
            found = torch.ops.fedsparse.product_backward(grad, x, values, want_x, want_values, *ctx.weight)
            grad_x, grad_values = (g if want else None for g, want in zip(found, (want_x, want_values), strict=True))
        grad_bias = grad.sum([0, *range(2, grad.ndim)]) if ctx.has_bias and want_bias else None
        return grad_x, grad_values, grad_bias, None, None


@torch.compiler.disable
def pruned_product(x: Tensor, values: Tensor, bias: Tensor | None, weight: _Weight, pruning: Pruning) -> Tensor:
    """`product`, with exact results and exact gradients of x and bias; that of the values is of the pruned x.

    Compiled models run it as ordinary Python, between two graphs.

    Args:
        x, values, bias: as in `product`.
        weight: index, shape, geometry and backend, as in `product`.
        pruning: how much of x is saved, and how.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # as autocast does for the product
    function: Any = _PrunedProduct
    result: Tensor = function.apply(x, values, bias, (list(weight[0]), *weight[1:]), pruning)
    return result
