"""Batch norms on a device that wait until it is known whether a ReLU follows, which then costs nothing more.

What has to be known of the whole batch, statistics, is computed when the norm is called. What is element by element
waits: a ReLU takes the norm's place (`Deferred.activated`), anybody else gets an ordinary tensor.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from fedsparse.backends.device_norms import Kernels, Norm, lies
from fedsparse.blocked.functions import apply, final
from fedsparse.blocked.history import exchanged
from fedsparse.errors import BackendError
from fedsparse.ops.made import note, runs_again

__all__ = ["ABOUT", "Deferred", "Waiting"]

# What the shape, type and place of a tensor tell that has no numbers yet.
_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse")
ABOUT = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
    Tensor.get_device,
    torch.numel,
    torch.is_floating_point,
    torch.is_complex,
    torch.is_tensor,
}


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
        if self.x._version != self.version:
            raise BackendError(
                f"the input of a batch norm, of shape {tuple(self.x.shape)}, was changed in place before the norm's "
                "result was used, and its gradient needs the input; use the function that returns a new tensor"
            )
        weight, bias = (None if t is None else t.detach() for t in (self.weight, self.bias))
        return Norm(held, self.mean, self.rstd, weight, bias)

    def computed(self, *, relu: bool) -> tuple[Tensor, Norm]:
        """The norm, or its ReLU, with its history, and what it holds for its gradients."""
        rounds = self.dtype not in (None, self.x.dtype)
        held = torch.empty_like(self.x, dtype=self.dtype) if rounds else self.x.detach()
        with torch.enable_grad():
            y = apply(_Computed, self.x, self.weight, self.bias, self, held, relu)
        return y, self.of(held)


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


class _Stand(Function):
    """The tensor that `make` makes, with the history of a norm that waits, for code that keeps history itself."""

    @staticmethod
    def forward(ctx: Any, make: Callable[[], Tensor], waiting: Waiting, *_: Tensor | None) -> Tensor:
        ctx.kernels, ctx.waiting = waiting.kernels, waiting
        return make()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        norm = ctx.waiting.of(ctx.waiting.x.detach())
        return None, None, *_gradients(ctx.kernels, norm, grad, ctx.needs_input_grad[2:], relu=False)


def _gradients(
    kernels: Kernels, norm: Norm, grad: Tensor, wanted: Sequence[bool], *, relu: bool
) -> list[Tensor | None]:
    """Of x, weight and bias, as far as they are wanted."""
    found = kernels.norm_backward(lies(norm.held).of(grad), norm, relu=relu)
    dtypes = (grad.dtype, *(None if p is None else p.dtype for p in (norm.weight, norm.bias)))
    return [final(g.to(dtype)) if want else None for g, dtype, want in zip(found, dtypes, wanted, strict=True)]


class Deferred(Tensor):
    """A norm that waits: to Python code, a tensor of its shape, which becomes an ordinary one when it is used."""

    waiting: Waiting
    _plain: Tensor | None

    @staticmethod
    def __new__(cls, waiting: Waiting) -> "Deferred":
        x = waiting.x

        def make() -> Tensor:
            made: Tensor = Tensor._make_wrapper_subclass(
                cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
            )
            return made

        deferred = cast("Deferred", apply(_Stand, make, waiting, x, waiting.weight, waiting.bias))
        deferred.waiting, deferred._plain = waiting, None
        return deferred

    @property
    def waits(self) -> bool:
        """Whether it has no numbers yet."""
        return self._plain is None

    def settled(self) -> Tensor:
        """The ordinary tensor that it is from now on: this object, unless somebody else holds it."""
        y, self._plain = self._plain, None
        if y is None:
            # What runs again finds the numbers here, and saves nothing for them.
            with saved_tensors_hooks(_same, _same) if runs_again() else nullcontext():
                y, _ = self.waiting.computed(relu=False)
        return self if exchanged(self, y) else self._stands_for(y)

    def activated(self, *, inplace: bool) -> Tensor:
        """The ReLU of a norm that waits, which needs no numbers of it; in place, that is what it is from now on.

        Raises:
            BackendError: in place, where torch's own code holds this tensor.
        """
        if inplace:
            self.refuse_change()
        y, norm = self.waiting.computed(relu=True)
        if inplace:
            y = self if exchanged(self, y) else self._stands_for(y)
        note(y, norm)
        return y

    def refuse_change(self) -> None:
        """Refuses to be changed in place where torch's own code, an autograd function, holds this tensor.

        Raises:
            BackendError: it does.
        """
        with torch._C.DisableTorchFunctionSubclass():
            held = self._use_count() > 1  # type: ignore[attr-defined]
        if held:
            raise BackendError(
                f"a batch norm's result of shape {tuple(self.waiting.x.shape)} was changed in place, and a "
                "torch.autograd.Function needs it as it was; use the function that returns a new tensor"
            )

    def _stands_for(self, y: Tensor) -> Tensor:
        self._plain = y
        return y

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in ABOUT or function is Tensor.requires_grad.__get__:  # type: ignore[attr-defined]
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))
        given, named = tree_map_only(Deferred, Deferred.settled, (tuple(args), kwargs or {}))
        before = [(a, y, y._version) for a, y in zip(args, given, strict=True) if isinstance(a, Deferred)]
        result = function(*given, **named)
        for deferred, y, version in before:
            if y._version != version:
                deferred.refuse_change()
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached past torch's Python functions, by code that keeps the history itself.
        if function._schema.is_mutable:
            raise BackendError(
                f"{function} would change the result of a batch norm in place before it is computed; use the function "
                "that returns a new tensor"
            )
        args, kwargs = tree_map_only(Deferred, Deferred._numbers, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)

    def _numbers(self) -> Tensor:
        """An ordinary tensor of the same numbers, without history."""
        if self._plain is not None:
            return self._plain.detach()
        x = self.waiting.x.detach()
        return self.waiting.kernels.norm(self.waiting.of(x), x.dtype, None, relu=False)


def _same(tensor: Tensor) -> Tensor:
    return tensor
