"""Where a network, or a part of one, that prunes its activations begins and ends."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from fedsparse.backends.activation import Pruning
from fedsparse.blocked.device_region import enter, leave
from fedsparse.blocked.hooks import release, surround
from fedsparse.blocked.saving import begin, end

__all__ = ["hold_pruned", "hold_whole"]

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class _Begin:
    """Forward pre-hook."""

    pruning: Pruning

    def __call__(self, module: nn.Module, _args: Any) -> None:
        if not torch.compiler.is_compiling():
            begin(self.pruning if module.training else None)
            enter(module)


def _end(_module: nn.Module, _args: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return output
    end()
    return leave(output)


def hold_pruned(model: _Model, pruning: Pruning) -> _Model:
    """Lets norms and ReLUs of `model` hold as little as pruned products need; returns the model."""
    hold_whole(model)
    surround(model, _Begin(pruning), _end)
    return model


def hold_whole(model: _Model) -> _Model:
    """Undoes `hold_pruned` of `model` and of its parts; returns the model."""
    for module in model.modules():
        release(module, lambda hook: hook is _end or isinstance(hook, _Begin))
    return model
