"""A tensor whose numbers stand in the layout of the cpu kernels, or are still to be computed there."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fedsparse.blocked.history import check
from fedsparse.blocked.nodes import Node, dtype_of, leave
from fedsparse.blocked.trace import ASKED, current

__all__ = ["Blocked", "plain", "rule", "sizes_of"]

# Answers of a rule: a Blocked tensor, or NotImplemented for arguments that the rule does not cover.
Rule = Callable[..., Any]
_RULES: dict[Any, Rule] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Declares how `functions` of torch are carried out on blocked tensors; see `fedsparse.blocked.rules`."""

    def declare(carry_out: Rule) -> Rule:
        _RULES.update(dict.fromkeys(functions, carry_out))
        return carry_out

    return declare


class Blocked(Tensor):
    """What sparse layers exchange inside a network: to Python code, a tensor of the ordinary shape.

    Functions of torch that have a rule stay in the layout. Any other use turns it into an ordinary tensor, with its
    history, and goes on with that one; so every function works and only speed is at stake.
    """

    # The ordinary shape as a plain attribute: asking torch for the shape of a subclass takes a microsecond each time.
    sizes: tuple[int, ...]
    _node: Node | None
    _plain: Tensor | None

    @staticmethod
    def __new__(cls, node: Node, shape: Sequence[int]) -> "Blocked":
        blocked: Blocked = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype_of(node))
        blocked.sizes = tuple(shape)
        blocked._node = node
        blocked._plain = None
        return blocked

    @property
    def node(self) -> Node | None:
        """What it is in the layout; None once it has left."""
        return self._node

    def become(self, other: "Blocked") -> "Blocked":
        """Takes the place of the result of an in-place function."""
        self._node, self._plain = other._node, other._plain
        return self

    def plain(self, cause: Any = ASKED) -> Tensor:
        """The ordinary tensor that it is from now on; `cause`, a function of torch or words, is for the record."""
        if self._plain is None:
            assert self._node is not None
            self._plain, self._node = leave(self._node, self.sizes), None
            trace = current()
            if trace is not None:
                trace.leave(self.sizes, cause)
        return self._plain

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if not torch.is_grad_enabled():
            for a in args:
                if isinstance(a, Blocked) and a._node is not None:
                    check(a._node)
        carry_out = _RULES.get(function)
        if carry_out is not None:
            result = carry_out(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(*plain(tuple(args), function), **plain(kwargs, function))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _types: Any, _args: Sequence[Any] = (), _kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached only around torch's Python functions, where a history would be lost.
        raise NotImplementedError(
            f"{function} was called on activations that a sparse network keeps in its own layout; "
            "call fedsparse.blocked.leave_blocked(model) to give every layer ordinary tensors"
        )


# Asks for what the ordinary shape, type and place tell.
_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_sparse")
_ABOUT = {
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


def sizes_of(x: Tensor) -> tuple[int, ...]:
    """The ordinary shape of a tensor."""
    return x.sizes if isinstance(x, Blocked) else tuple(x.shape)


def plain(tree: Any, cause: Any = ASKED) -> Any:
    """`tree`, a tensor or a nest of lists, tuples and dicts, with ordinary tensors for blocked ones.

    `cause` as in `Blocked.plain`.
    """
    if isinstance(tree, Blocked):
        return tree.plain(cause)
    return tree_map_only(Blocked, lambda x: x.plain(cause), tree)
