"""Where a network, or a part of one, that prunes its activations begins and ends."""

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from fedsparse.backends.activation import Pruning
from fedsparse.blocked.device import Frugal, on_device
from fedsparse.blocked.saving import begin, end
from fedsparse.blocked.tensor import plain
from fedsparse.ops.made import noting

__all__ = ["hold_pruned", "hold_whole"]

_Model = TypeVar("_Model", bound=nn.Module)
# What the outermost network on a device that is running has to leave, and how many run inside it.
_device: ContextVar[tuple[ExitStack, int] | None] = ContextVar("fedsparse_pruned_device", default=None)


@dataclass(frozen=True)
class _Begin:
    """Forward pre-hook."""

    pruning: Pruning

    def __call__(self, module: nn.Module, _args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        begin(self.pruning if module.training else None)
        outer = _device.get()
        if outer is not None:
            _device.set((outer[0], outer[1] + 1))
        elif module.training and on_device(module):
            leaves = ExitStack()
            leaves.enter_context(noting())
            leaves.enter_context(Frugal())
            _device.set((leaves, 0))


def _end(_module: nn.Module, _args: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return output
    end()
    outer = _device.get()
    if outer is None:
        return output
    leaves, inside = outer
    if inside:
        _device.set((leaves, inside - 1))
        return output
    _device.set(None)
    leaves.close()
    return output if output is None else plain(output)


def hold_pruned(model: _Model, pruning: Pruning) -> _Model:
    """Lets norms and ReLUs of `model` hold as little as pruned products need; returns the model."""
    hold_whole(model)
    model.register_forward_pre_hook(_Begin(pruning), prepend=True)
    model.register_forward_hook(_end, always_call=True)
    return model


def hold_whole(model: _Model) -> _Model:
    """Undoes `hold_pruned` of `model` and of its parts; returns the model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook is _end or isinstance(hook, _Begin)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
    return model
