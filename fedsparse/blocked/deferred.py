"""Batch norms on a device, and their sums, that wait until it is known whether a ReLU follows.

That then costs nothing more: it takes the norm's place (`Deferred.activated`). Anybody else gets an ordinary tensor.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from fedsparse.blocked.functions import apply
from fedsparse.blocked.history import exchanged
from fedsparse.blocked.waiting import Waiting, WaitingSum
from fedsparse.errors import BackendError
from fedsparse.ops.made import note, runs_again

__all__ = ["ABOUT", "Deferred"]

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


class _Stand(Function):
    """The tensor that `make` makes, with the history of a norm that waits, for code that keeps history itself."""

    @staticmethod
    def forward(ctx: Any, make: Callable[[], Tensor], waiting: Waiting | WaitingSum, *_: Tensor | None) -> Tensor:
        ctx.waiting = waiting
        return make()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.waiting.gradients(grad, ctx.needs_input_grad[2:])


class Deferred(Tensor):
    """A norm that waits: to Python code, a tensor of its shape, which becomes an ordinary one when it is used."""

    waiting: Waiting | WaitingSum
    _plain: Tensor | None

    @staticmethod
    def __new__(cls, waiting: Waiting | WaitingSum) -> "Deferred":
        x = waiting.x

        def make() -> Tensor:
            made: Tensor = Tensor._make_wrapper_subclass(
                cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
            )
            return made

        deferred = cast("Deferred", apply(_Stand, make, waiting, *waiting.sources))
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
        return self.waiting.numbers() if self._plain is None else self._plain.detach()


def _same(tensor: Tensor) -> Tensor:
    return tensor
