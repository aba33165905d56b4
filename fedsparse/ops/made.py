"""How ordinary activations were made, noted while a network runs on a device whose norms and ReLUs are ours.

Products that read one of them share what they keep of it, and with the norm in front, if there is one, what that holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedsparse.backends.activation import Kept, Pruning
from fedsparse.backends.device_norms import Norm

__all__ = ["Made", "made", "note", "noting", "runs_again"]


@dataclass(frozen=True)
class Made:
    """The ReLU of something.

    Attributes:
        version: of the tensor, which another value shows to have been changed since.
        norm: what it is the ReLU of, without history; None where that is not held.
        forms: what products keep of it.
    """

    version: int
    norm: Norm | None
    forms: dict[Pruning, Kept] = field(default_factory=dict)


_notes: ContextVar[WeakTensorKeyDictionary | None] = ContextVar("fedsparse_made", default=None)


@contextmanager
def noting() -> Iterator[None]:
    """Inside it, `note` is remembered for as long as the tensor lives."""
    before = _notes.get()
    _notes.set(WeakTensorKeyDictionary())
    try:
        yield
    finally:
        _notes.set(before)


def note(x: Tensor, norm: Norm | None) -> None:
    """Notes that x is the ReLU of a norm, or of something else."""
    notes = _notes.get()
    if notes is not None:
        notes[x] = Made(x._version, norm)


def made(x: Tensor) -> Made | None:
    """How x was made, if that was noted and x has not been changed since."""
    notes = None if runs_again() else _notes.get()
    found: Made | None = None if notes is None else notes.get(x)
    return found if found is not None and found.version == x._version else None


def runs_again() -> bool:
    """Whether `torch.utils.checkpoint` will run what runs now once more, without the network, and save the same."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
