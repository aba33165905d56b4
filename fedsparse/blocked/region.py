"""Where a network begins and ends: between the two, its sparse layers exchange blocked tensors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import nn

from fedsparse.backends.layout import chosen_at
from fedsparse.blocked.hooks import release, surround
from fedsparse.blocked.innermost import Innermost
from fedsparse.blocked.tensor import plain
from fedsparse.blocked.trace import END

__all__ = ["autocast", "inside", "keep_blocked", "leave_blocked", "network"]

_Model = TypeVar("_Model", bound=nn.Module)
_depth: ContextVar[int] = ContextVar("fedsparse_blocked_depth", default=0)
# What the outermost network on a device that is running has to leave.
_device: ContextVar[ExitStack | None] = ContextVar("fedsparse_blocked_device", default=None)


def inside() -> bool:
    """Whether a network that keeps its activations blocked is running, and nothing traces or transforms it."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return _depth.get() > 0 and autocast() in (None, torch.bfloat16)


def autocast() -> torch.dtype | None:
    """What autocast lets products on the CPU compute; None where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


@contextmanager
def network() -> Iterator[None]:
    """Inside it, sparse layers exchange blocked tensors: what `keep_blocked` does around a model's forward pass."""
    _begin()
    try:
        yield
    finally:
        _depth.set(_depth.get() - 1)


def keep_blocked(model: _Model) -> _Model:
    """Lets the sparse layers of `model` exchange activations in the layout of the cpu kernels; returns the model.

    What enters and leaves the model stays ordinary. `sparsify` does this for the models it changes. On a CUDA device
    batch norms return activations that lie batch-innermost as they lie.
    """
    if _enter not in model._forward_pre_hooks.values():
        surround(model, _enter, _exit)
    return model


def leave_blocked(model: _Model) -> _Model:
    """Undoes `keep_blocked`: every layer gets and gives ordinary tensors. Returns the model."""
    release(model, lambda hook: hook in (_enter, _exit))
    return model


def _enter(module: nn.Module, _args: Any) -> None:
    if torch.compiler.is_compiling():
        return
    _begin()
    first = next(module.parameters(), None)
    if _depth.get() == 1 and first is not None and chosen_at(first):
        leaves = ExitStack()
        leaves.enter_context(Innermost())
        _device.set(leaves)


def _begin() -> None:
    _depth.set(_depth.get() + 1)


def _exit(_module: nn.Module, _args: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return output
    _depth.set(_depth.get() - 1)
    if _depth.get():
        return output
    leaves = _device.get()
    if leaves is not None:
        _device.set(None)
        leaves.close()
    return plain(output, END)
