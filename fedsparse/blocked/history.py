"""Where the history of blocked activations would get lost, and says so."""

import sys
from contextvars import ContextVar

import torch

from fedsparse.blocked.nodes import Node, requires_grad
from fedsparse.errors import BackendError

__all__ = ["begin", "check"]

_recording: ContextVar[bool] = ContextVar("fedsparse_blocked_recording", default=False)
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def begin() -> None:
    """Called where a network begins: whether its gradients are wanted is known here."""
    _recording.set(torch.is_grad_enabled())


def check(node: Node) -> None:
    """Refuses activations that somebody's `torch.autograd.Function` has been given.

    Such a function takes the history of its arguments before any Python code of theirs is asked, and that of a tensor
    which only stands for others is empty: the network would train on without the gradients of everything before it.
    Inside its forward gradients are off; elsewhere that is the caller's wish.

    Raises:
        BackendError: a custom function, or torch's reentrant checkpoint, is running.
    """
    if torch.is_grad_enabled() or not _recording.get() or not requires_grad(node):
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _APPLY:
            raise BackendError(
                "a torch.autograd.Function was given activations that a sparse network keeps in its own layout, and "
                "would lose their gradients (torch.utils.checkpoint with use_reentrant=True is one, too); call "
                "fedsparse.blocked.leave_blocked(model) to give every layer ordinary tensors"
            )
