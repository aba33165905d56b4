"""The history of blocked activations as torch's own code sees it.

Gradients run from node to node (`fedsparse.blocked.nodes`). Some code of torch, as `torch.autograd.Function`, takes the
history of its arguments before any Python of theirs is asked, and finds what a blocked tensor carries itself.
`standing` leads from that into the layout, `settled` from the layout to what such code has made of a tensor.
"""

from collections.abc import Callable
from typing import Any
from weakref import getweakrefs

import torch
from torch import Tensor
from torch.autograd import Function

from fedsparse.backends.blocked import isa_of
from fedsparse.backends.cpu import from_blocked, to_blocked
from fedsparse.blocked.functions import apply, final
from fedsparse.blocked.nodes import Node, Normed, Sum, requires_grad, sources, store, with_sources
from fedsparse.ops.held import alias

__all__ = ["carried", "exchanged", "settled", "standing"]


class _Stand(Function):
    """The tensor that `make` makes, with the history of a node's sources; its gradient is an ordinary tensor."""

    @staticmethod
    def forward(ctx: Any, make: Callable[[], Tensor], node: Node, batch: int, isa: str, *_: Tensor | None) -> Tensor:
        ctx.isa, ctx.batch = isa, batch
        # A node that is not computed yet must be, to have gradients.
        ctx.node = node if isinstance(node, Normed | Sum) else None
        return make()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = to_blocked(grad, ctx.isa)
        if ctx.node is None:
            return None, None, None, None, final(grad)
        own = [None if s is None else s.detach().requires_grad_() for s in sources(ctx.node)]
        with torch.enable_grad():
            z = store(with_sources(ctx.node, iter(own)), ctx.batch)
        found = iter(torch.autograd.grad(z, [s for s in own if s is not None], grad))
        return None, None, None, None, *(None if s is None else final(next(found)) for s in own)


class _Settle(Function):
    """The numbers of `x`, ordinary ones or in the layout where `sizes` are given, with the history that x carries."""

    @staticmethod
    def forward(ctx: Any, _x: Tensor, numbers: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
        ctx.sizes = sizes
        return alias(numbers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        return final(grad if ctx.sizes is None else from_blocked(grad.contiguous(), ctx.sizes)), None, None


def standing(make: Callable[[], Tensor], node: Node, batch: int) -> Tensor:
    """What `make` makes, to stand for `node` wherever its history is looked for."""
    if requires_grad(node):
        own = sources(node)
        assert own[0] is not None
        return apply(_Stand, make, node, batch, isa_of(own[0].shape[-1]), *own)
    return make()


def carried(x: Tensor) -> Any:
    """The history that a blocked tensor carries itself."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.grad_fn


def settled(x: Tensor, numbers: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """`numbers`, ordinary or, with `sizes`, in the layout, with the history that the blocked tensor x carries."""
    return apply(_Settle, x, numbers.detach(), sizes)


def exchanged(x: Tensor, other: Tensor) -> bool:
    """Exchanges what two tensors are, history included, unless torch's own code or a weak reference holds one.

    Says whether it did.
    """
    with torch._C.DisableTorchFunctionSubclass():
        if any(t._use_count() > 1 or getweakrefs(t) for t in (x, other)):  # type: ignore[attr-defined]
            return False
        torch.utils.swap_tensors(x, other)
    return True
