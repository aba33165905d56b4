"""Where a network, or a part of one, that leaves its batch norms and ReLUs on a device to our kernels begins and ends.

Nothing else changes: layers save what they always do.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from fedsparse.blocked.device_region import enter, leave
from fedsparse.blocked.fusing import begin, end
from fedsparse.blocked.hooks import release, surround

__all__ = ["fuse", "unfuse"]

_Model = TypeVar("_Model", bound=nn.Module)


def _begin(module: nn.Module, _args: Any) -> None:
    if not torch.compiler.is_compiling():
        begin(module.training)
        enter(module)


def _end(_module: nn.Module, _args: Any, output: Any) -> Any:
    if torch.compiler.is_compiling():
        return output
    end()
    return leave(output)


def fuse(model: _Model) -> _Model:
    """Leaves batch norms and ReLUs of `model` to our kernels where there are any; returns the model."""
    unfuse(model)
    surround(model, _begin, _end)
    return model


def unfuse(model: _Model) -> _Model:
    """Undoes `fuse` of `model` and of its parts; returns the model."""
    for module in model.modules():
        release(module, lambda hook: hook in (_begin, _end))
    return model
