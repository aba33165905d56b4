"""Hooks around a model's forward pass: what begins with it, ends with it, and can be told from others' hooks."""

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["release", "surround"]


def surround(model: nn.Module, begin: Callable[..., None], end: Callable[..., Any]) -> None:
    """Calls `begin` before every other hook, and `end` even where the model has failed."""
    model.register_forward_pre_hook(begin, prepend=True)
    model.register_forward_hook(end, always_call=True)


def release(model: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Undoes `surround` of one module where `ours` says so of a hook."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if ours(hook)]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)
