"""Where a network's activations enter and leave the layout of the cpu kernels while it runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import resolve_name

from fedsparse.backends import Case

__all__ = ["ASKED", "END", "Conversion", "Trace", "current", "traced"]

# Reasons to leave that are not functions of torch.
ASKED = "its numbers are asked for"
END = "end of the network"


@dataclass(frozen=True)
class Conversion:
    """One tensor that changed its layout.

    Attributes:
        enters: ordinary to blocked; otherwise blocked to ordinary.
        module: path of the module whose forward pass was running; empty for the model itself.
        shape: ordinary shape of the tensor.
        why: what made a tensor leave; empty where one enters.
        function: the function of torch that had no rule for its arguments; None where none did.
    """

    enters: bool
    module: str
    shape: tuple[int, ...]
    why: str = ""
    function: str | None = None

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        place = f"{'enters' if self.enters else 'leaves'} at {self.module or 'the model itself'} ({size})"
        return f"{place}: {self.why}" if self.why else place


@dataclass
class Trace:
    """What happened in one run of a model.

    Attributes:
        conversions: in the order in which they happened.
        products: cases of the blocked products, by path of their layer; the last one of layers that ran repeatedly.
        running: paths of the modules whose forward pass is running, the innermost last.
    """

    conversions: list[Conversion] = field(default_factory=list)
    products: dict[str, Case] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        return self.running[-1] if self.running else ""

    def product(self, case: Case, *, enters: bool) -> None:
        """Notes a blocked product, and whether its input had to enter."""
        if enters:
            self.conversions.append(Conversion(True, self.module, case.input))
        self.products[self.module] = case

    def leave(self, shape: tuple[int, ...], cause: Any) -> None:
        """Notes that a tensor of `shape` left; `cause` is a function of torch or says why in words."""
        function = None if isinstance(cause, str) else _name(cause)
        why = cause if function is None else f"no rule covers {function}"
        self.conversions.append(Conversion(False, self.module, shape, why, function))


_trace: ContextVar[Trace | None] = ContextVar("fedsparse_blocked_trace", default=None)


def current() -> Trace | None:
    """The record to write to; None, as nearly always, where nobody keeps one."""
    return _trace.get()


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Inside it, what runs in this thread is recorded; places are named as `model` names its modules.

    Modules that TorchScript has compiled take no hooks: what happens in them counts as their parent's.
    """
    trace = Trace()
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                _follow(module, path, trace, hooks)
        token = _trace.set(trace)
        hooks.callback(_trace.reset, token)
        yield trace


def _follow(module: nn.Module, path: str, trace: Trace, hooks: ExitStack) -> None:
    # Other threads may run the model meanwhile; they see the hooks, but not the trace.
    def begin(_module: nn.Module, _args: Any) -> None:
        if current() is trace:
            trace.running.append(path)

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        if current() is trace:
            trace.running.pop()

    # The model's own hooks run in between, so that what they convert counts as the module's.
    hooks.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
    hooks.callback(module.register_forward_hook(end, always_call=True).remove)


def _name(function: Any) -> str:
    """The name that users know a function of torch by."""
    name: str = resolve_name(function) or getattr(function, "__qualname__", repr(function))
    return name.removesuffix(".__get__")
