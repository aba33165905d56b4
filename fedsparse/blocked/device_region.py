"""Where a network on a device, or a part of one, begins and ends whose batch norms and ReLUs our kernels carry out."""

from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from torch import nn

from fedsparse.blocked.device import Frugal, on_device
from fedsparse.blocked.tensor import plain
from fedsparse.ops.made import noting

__all__ = ["enter", "leave"]

# What the outermost such network that is running has to leave, and how many run inside it.
_region: ContextVar[tuple[ExitStack, int] | None] = ContextVar("fedsparse_device_region", default=None)


def enter(module: nn.Module) -> None:
    """A network begins; nothing happens where it does not train, or not on a device."""
    outer = _region.get()
    if outer is not None:
        _region.set((outer[0], outer[1] + 1))
    elif module.training and on_device(module):
        leaves = ExitStack()
        leaves.enter_context(noting())
        leaves.enter_context(Frugal())
        _region.set((leaves, 0))


def leave(output: Any) -> Any:
    """The innermost ends with `output`, None where it has failed; the outermost gives ordinary tensors."""
    outer = _region.get()
    if outer is None:
        return output
    leaves, inside = outer
    if inside:
        _region.set((leaves, inside - 1))
        return output
    _region.set(None)
    leaves.close()
    return output if output is None else plain(output)
