"""Batch norms and ReLUs of a network on a device, while it prunes its activations or was asked to fuse them.

What torch saves for their backward passes would undo what pruning saves: a ReLU its whole output. Inside `Frugal` a
ReLU behind a batch norm is computed with it and saves nothing of its own, another one saves a bit for each element,
behind a residual sum that is computed with a norm, too.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from fedsparse.backends import device_norms
from fedsparse.backends.device_norms import Kernels, Running
from fedsparse.blocked.deferred import Deferred
from fedsparse.blocked.functions import apply, final
from fedsparse.blocked.fusing import ours
from fedsparse.blocked.history import exchanged
from fedsparse.blocked.saving import pruning
from fedsparse.blocked.waiting import Waiting, WaitingSum
from fedsparse.ops.made import note, runs_again

__all__ = ["Frugal", "on_device"]


def on_device(module: nn.Module) -> bool:
    """Whether a module's parameters are where norms and ReLUs have kernels."""
    return any(device_norms.available(parameter.device) for parameter in module.parameters())


class Frugal(TorchFunctionMode):
    """Inside it, batch norms and ReLUs whose gradients may be wanted are carried out by our kernels.

    A norm's module counts batches right before it calls the norm, whose kernel can do that as well: a counter waits for
    it, or for any other function, which finds it counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batches: Tensor | None = None  # a counter that waits

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named, carry_out = kwargs or {}, _RULES.get(function)
        if function is not F.batch_norm:
            self._count()
        if carry_out is not None and ours() and _eager():
            if function is Tensor.add_ and _is_count(*args, **named):
                self._batches = args[0]
                return args[0]
            waiting = {"batches": self._batches} if function is F.batch_norm else {}
            result = carry_out(*args, **named, **waiting)
            if result is not NotImplemented:
                self._batches = None
                return result
        self._count()
        return function(*args, **named)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._count()

    def _count(self) -> None:
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.add_(1)


def _eager() -> bool:
    """Whether nothing traces, transforms or will repeat what is called."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and not runs_again()


def _kernels(x: Tensor) -> Kernels | None:
    """Who computes for an ordinary tensor; None where torch does."""
    return device_norms.kernels_for(x) if type(x) in (Tensor, nn.Parameter) else None


# ---- ReLUs
class _Relu(Function):
    """A ReLU that saves one bit for each element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels, inplace: bool) -> Tensor:
        y, bits = kernels.relu(x, inplace=inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(bits)
        ctx.kernels, ctx.lie = kernels, device_norms.lies(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (bits,) = ctx.saved_tensors
        return final(ctx.kernels.gate(ctx.lie.of(grad), bits)), None, None


def _relu(input: Tensor, inplace: bool = False) -> Any:
    if isinstance(input, Deferred) and input.waits:
        return input.activated(inplace=inplace)
    kernels = _kernels(input)
    if kernels is None or not input.requires_grad or (inplace and (input.is_leaf or input._is_view())):
        return NotImplemented  # what torch refuses to change in place, and views, are left to it
    y = apply(_Relu, input, kernels, inplace)
    note(y, None)
    return y


def _relu_(input: Tensor) -> Any:
    return _relu(input, inplace=True)


# ---- batch norms
def _is_count(*args: Any, **named: Any) -> bool:
    """Whether 1 is added to what counts batches."""
    if len(args) != 2 or named or type(args[0]) is not Tensor or type(args[1]) is not int or args[1] != 1:
        return False
    return args[0].dtype == torch.int64 and args[0].dim() == 0 and device_norms.available(args[0].device)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    batches: Tensor | None = None,
) -> Any:
    x = x.settled() if isinstance(x, Deferred) else x
    vectors = (running_mean, running_var, weight, bias)
    kernels = _kernels(x) if training and (running_mean is None) == (running_var is None) else None
    if kernels is None or x.dim() < 2 or x.numel() < 2 * x.shape[1] or not all(_fits(x, v) for v in vectors):
        return NotImplemented
    if not any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return NotImplemented
    running = Running(running_mean, running_var, batches)
    mean, rstd = kernels.statistics(x.detach(), running, momentum, eps)
    for kept in running:
        if kept is not None:
            torch.autograd.graph.increment_version(kept)  # kernels write past torch
    pruned = pruning()
    rounded = None if pruned is None else pruned.dtype
    return Deferred(Waiting(x, weight, bias, mean, rstd, kernels, rounded, x._version))


def _fits(x: Tensor, vector: Tensor | None) -> bool:
    """Whether a parameter or statistic is where and what the kernels read."""
    if vector is None:
        return True
    dtypes = vector.dtype in (torch.float32, x.dtype)
    return dtypes and vector.device == x.device and vector.shape == (x.shape[1],) and vector.is_contiguous()


# ---- sums of a norm and what is added behind it
def _add(*args: Any, **named: Any) -> Any:
    if len(args) != 2 or named:
        return NotImplemented  # weighted, or into a tensor of the caller's
    for norm, other in ((_waiting(args[0]), args[1]), (_waiting(args[1]), args[0])):
        if norm is not None:
            return _summed(norm, other)
    return NotImplemented


def _add_(*args: Any, **named: Any) -> Any:
    norm = None if len(args) != 2 or named or args[1] is args[0] else _waiting(args[0])
    total = NotImplemented if norm is None else _summed(norm, args[1])
    if total is NotImplemented:
        return NotImplemented
    args[0].refuse_change()
    return args[0] if exchanged(args[0], total) else NotImplemented


def _waiting(tensor: Any) -> Waiting | None:
    """The norm that waits in a tensor, if one does and nothing was added to it yet."""
    if isinstance(tensor, Deferred) and tensor.waits and isinstance(tensor.waiting, Waiting):
        return tensor.waiting
    return None


def _summed(norm: Waiting, other: Any) -> Any:
    rest = other.settled() if isinstance(other, Deferred) else other
    return Deferred(WaitingSum(norm, rest, rest._version)) if _alike(norm.x, rest) else NotImplemented


def _alike(x: Tensor, other: Any) -> bool:
    """Whether an ordinary tensor is where and what the kernels add to x."""
    if type(other) not in (Tensor, nn.Parameter) or (other.shape, other.dtype) != (x.shape, x.dtype):
        return False
    return other.device == x.device and device_norms.lies(x).holds(other)


_RULES: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _relu_),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _add_),
}
