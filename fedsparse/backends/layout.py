"""How activations lie in memory: sample after sample, as torch makes them, or with the samples side by side.

Batch-innermost activations are ordinary tensors, `(batch, ...)` to everybody, with strides of their own, which torch's
element-by-element functions keep. Transposing them is our own kernel on a device, torch's copy elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, launch

__all__ = ["BATCH_INNERMOST", "CONTIGUOUS", "Layout", "chosen_at"]


@dataclass(frozen=True)
class Layout:
    """An order of axes in memory.

    Attributes:
        innermost: whether that is `(..., batch)`, or else `(batch, ...)`.
    """

    innermost: bool

    def holds(self, x: Tensor) -> bool:
        """Whether x lies so, without gaps. What has one sample, or one number a sample, lies both ways."""
        return self.in_memory(x).is_contiguous()

    def in_memory(self, x: Tensor) -> Tensor:
        """A view of x with its axes in this order, contiguous where x lies so."""
        return x.movedim(0, -1) if self.innermost else x

    def empty(self, like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """New memory of `shape`, on the device and of the dtype of `like` unless another is given."""
        if not self.innermost:
            return like.new_empty(shape, dtype=dtype or like.dtype)
        return like.new_empty((*shape[1:], shape[0]), dtype=dtype or like.dtype).movedim(-1, 0)

    def of(self, x: Tensor) -> Tensor:
        """x itself where it lies so, else a copy, without history, that does."""
        if self.holds(x):
            return x
        source = CONTIGUOUS if self.innermost else BATCH_INNERMOST
        y, whole = self.empty(x, x.shape), source.in_memory(x)
        if not (whole.is_contiguous() and x.dtype in STORED and _native.on_device(x)):
            return y.copy_(x.detach())
        rows = len(whole) if self.innermost else whole.numel() // len(x)
        launch("cuda_transpose", x, address(x), address(y), rows, whole.numel() // rows, STORED[x.dtype])
        return y


def chosen_at(tensor: Tensor) -> bool:
    """Whether a backend may choose a layout for activations where a tensor is."""
    return _native.on_device(tensor)


CONTIGUOUS = Layout(innermost=False)
BATCH_INNERMOST = Layout(innermost=True)
