"""Whether the network that is running leaves its batch norms and ReLUs on a device to our kernels."""

from contextvars import ContextVar

import torch

from fedsparse.blocked.saving import pruning

__all__ = ["begin", "end", "ours"]

# One entry for each model or part of one that was asked to and is running, the innermost last: whether it trains.
_running: ContextVar[tuple[bool, ...]] = ContextVar("fedsparse_fused_norms", default=())


def begin(training: bool) -> None:
    """A model, or a part of one, that leaves them to our kernels where it trains begins to run."""
    _running.set((*_running.get(), training))


def end() -> None:
    """The innermost of what is running ends."""
    _running.set(_running.get()[:-1])


def ours() -> bool:
    """Whether they are ours: asked for, or because activations are pruned."""
    running = _running.get()
    return pruning() is not None or (bool(running) and running[-1] and torch.is_grad_enabled())
