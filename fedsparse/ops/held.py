"""The product with a backward pass of its own, which prunes the input it sees or shows it to somebody."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fedsparse.backends.activation import Kept, Pruning, keep, restore
from fedsparse.ops.made import made
from fedsparse.ops.products import as_autocast_wants, product

__all__ = ["Catch", "alias", "held_product"]

# (index, shape, geometry, backend), as `product` takes them.
_Weight = tuple[Any, ...]
# Called in the backward pass of one product with the gradient of its output and its input, unpruned. Activations in the
# layout of the cpu kernels may come as `fedsparse.blocked.Blocked`.
Catch = Callable[[Tensor, Tensor], None]


def alias(data: Tensor) -> Tensor:
    """Another tensor on the same memory, with a history of its own; no view, so it may be changed in place."""
    return data.new_empty(0).set_(data.untyped_storage(), data.storage_offset(), data.shape, data.stride())


class _HeldProduct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: _Weight,
        pruning: Pruning | None,
        catch: Catch | None,
    ) -> Tensor:
        ctx.weight, ctx.has_bias, ctx.pruning, ctx.catch = weight, bias is not None, pruning, catch
        ctx.shape, ctx.dtype, ctx.form = tuple(x.shape), x.dtype, None
        if pruning is None or catch is not None:  # who catches wants it whole; it is pruned later
            ctx.save_for_backward(values, x)
        else:
            kept = _kept(x, pruning)
            ctx.form = type(kept)._make
            ctx.save_for_backward(values, *kept)
        return alias(product(x, values, bias, *weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, *held = ctx.saved_tensors
        want_x, want_values, want_bias = ctx.needs_input_grad[:3]
        if ctx.catch is not None:
            with torch.no_grad():
                ctx.catch(grad.detach(), held[0].detach())
        grad_x = grad_values = None
        if want_x or want_values:
            # The op asks for an input even where only its shape matters.
            x = _seen(ctx, held) if want_values else grad.new_empty(ctx.shape)
            found = torch.ops.fedsparse.product_backward(grad, x, values, want_x, want_values, *ctx.weight)
            grad_x, grad_values = (g if want else None for g, want in zip(found, (want_x, want_values), strict=True))
        grad_bias = grad.sum([0, *range(2, grad.ndim)]) if ctx.has_bias and want_bias else None
        return grad_x, grad_values, grad_bias, None, None, None


def _kept(x: Tensor, pruning: Pruning) -> Kept:
    """What is left of x, which its readers share where the network that runs has noted how it was made."""
    note = made(x)
    if note is None:
        return keep(x, pruning)
    if pruning not in note.forms:
        note.forms[pruning] = keep(x, pruning, note.norm)
    return note.forms[pruning]


def _seen(ctx: Any, held: Sequence[Tensor]) -> Tensor:
    """The input that the values' gradient is of."""
    if ctx.pruning is None:
        return held[0]
    kept = keep(held[0], ctx.pruning) if ctx.form is None else ctx.form(held)
    return restore(kept, ctx.shape, ctx.dtype)


@torch.compiler.disable
def held_product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    weight: _Weight,
    pruning: Pruning | None,
    catch: Catch | None = None,
) -> Tensor:
    """`product`, with exact results and exact gradients of x and bias.

    Compiled models run it as ordinary Python, between two graphs.

    Args:
        x, values, bias: as in `product`.
        weight: index, shape, geometry and backend, as in `product`.
        pruning: how much of x the gradient of the values sees, and how that is saved; None: all.
        catch: called in the backward pass, before it computes anything. It gets the whole x, pruned or not, which is
            then saved whole.
    """
    x, values, bias = as_autocast_wants(x, values, bias)
    function: Any = _HeldProduct
    result: Tensor = function.apply(x, values, bias, (list(weight[0]), *weight[1:]), pruning, catch)
    return result
