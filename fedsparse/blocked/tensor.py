"""A tensor whose numbers stand in the layout of the cpu kernels, or are still to be computed there."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fedsparse.blocked.deferred import ABOUT, Deferred
from fedsparse.blocked.history import carried, exchanged, settled, standing
from fedsparse.blocked.nodes import Node, Stored, dtype_of, leave, requires_grad, store, without_history
from fedsparse.blocked.trace import ASKED, current
from fedsparse.errors import BackendError

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
    _carried: Any  # the history that leads to the node

    @staticmethod
    def __new__(cls, node: Node, shape: Sequence[int]) -> "Blocked":
        if not torch.is_grad_enabled():  # what is put off must not be recorded then either
            node = without_history(node)

        def make() -> Tensor:
            made: Tensor = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype_of(node))
            return made

        blocked = cast("Blocked", standing(make, node, shape[0]))
        blocked.sizes = tuple(shape)
        blocked._node = node
        blocked._plain = None
        blocked._carried = carried(blocked)
        return blocked

    @property
    def node(self) -> Node | None:
        """What it is in the layout; None once it has left."""
        self._settle()
        return self._node

    def become(self, other: "Blocked") -> "Blocked":
        """Takes the place of the result of an in-place function.

        Raises:
            BackendError: somebody's `torch.autograd.Function` has saved this tensor.
        """
        if torch.is_grad_enabled():
            if not exchanged(self, other):
                raise BackendError(
                    f"an activation of shape {self.sizes} was changed in place, and a torch.autograd.Function, or a "
                    "weak reference, holds it as it was; use the function that returns a new tensor"
                )
        elif self._node is None or requires_grad(self._node):
            self.plain().copy_(other.plain())  # other numbers, the same history
        else:
            self._node = other._node
        return self

    def stored(self) -> Tensor:
        """Its numbers in the layout, which it has not left; computed once for all users.

        Their history is its own, whether or not gradients are recorded where somebody asks.
        """
        node = self.node
        assert node is not None
        with torch.enable_grad():
            data = store(node, self.sizes[0])
            if not isinstance(node, Stored) and not exchanged(self, Blocked(Stored(data), self.sizes)):
                self._node = Stored(data)
        return data

    def plain(self, cause: Any = ASKED) -> Tensor:
        """The ordinary tensor that it is from now on; `cause`, a function of torch or words, is for the record."""
        self._settle()
        if self._plain is None:
            assert self._node is not None
            with torch.enable_grad():  # as in `stored`
                self._plain, self._node = leave(self._node, self.sizes), None
            trace = current()
            if trace is not None:
                trace.leave(self.sizes, cause)
        return self._plain

    def _settle(self) -> None:
        """Takes over the history of somebody's `torch.autograd.Function` that has returned this tensor."""
        history = carried(self)
        if history is self._carried:
            return
        with torch.enable_grad():
            if self._node is not None:
                self._node = Stored(settled(self, store(self._node, self.sizes[0]), self.sizes))
            else:
                assert self._plain is not None
                self._plain = settled(self, self._plain, None)
        self._carried = history

    def _numbers(self) -> Tensor:
        """An ordinary tensor of the same numbers, without history; this one stays what it is."""
        if self._plain is not None:
            return self._plain.detach()
        assert self._node is not None
        with torch.no_grad():
            return leave(self._node, self.sizes)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        carry_out = _RULES.get(function)
        if carry_out is not None:
            result = carry_out(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*plain(tuple(args), function), **plain(kwargs, function))
        # A function in place answers with its argument, not with what that stands for.
        return next((a for a in args if isinstance(a, Blocked) and a._plain is result), result)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Reached past torch's Python functions, by code that keeps the history itself.
        if function._schema.is_mutable:
            raise BackendError(
                f"{function} would change activations in place that a sparse network keeps in its own layout; "
                "call fedsparse.blocked.leave_blocked(model) to give every layer ordinary tensors"
            )
        args, kwargs = tree_map_only(Blocked, Blocked._numbers, (tuple(args), kwargs or {}))
        return function(*args, **kwargs)


def sizes_of(x: Tensor) -> tuple[int, ...]:
    """The ordinary shape of a tensor."""
    return x.sizes if isinstance(x, Blocked) else tuple(x.shape)


def plain(tree: Any, cause: Any = ASKED) -> Any:
    """`tree`, a tensor or a nest of lists, tuples and dicts, with ordinary tensors for blocked and deferred ones.

    `cause` as in `Blocked.plain`.
    """
    if isinstance(tree, Blocked):
        return tree.plain(cause)
    if isinstance(tree, Deferred):
        return tree.settled()
    return tree_map_only((Blocked, Deferred), lambda x: plain(x, cause), tree)
