"""Blocked activations as the C++ kernels read them: through a term, cut, or packed (csrc/cpu/activation.h)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse._native import address

__all__ = ["Cuts", "Packed", "Term"]


class Cuts(NamedTuple):
    """Which elements of image n stay: those whose magnitude, its bits read as an integer, is above `key[n]`, and those
    equal to it up to position `last[n]`, counted inside the image in the order (channel, row, column).

    Attributes:
        key, last: `(groups * lanes,)` int32.
        kept: elements that stay, of all images together; None where nobody counted.
    """

    key: Tensor
    last: Tensor
    kept: int | None = None


class Term(NamedTuple):
    """Blocked activations as they are read: `relu?(scale * data + shift)` per channel (csrc/cpu/blocked.h).

    Attributes:
        data: `(groups, channels, height, width, lanes)` contiguous; float32 or bfloat16.
        scale, shift: `(channels,)` float32; None stands for 1 and 0.
        relu: whether negative results become 0.
        cuts: what is left of the results in a backward pass; None: all.
    """

    data: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False
    cuts: Cuts | None = None

    @property
    def view(self) -> tuple[int, int, int, bool]:
        """The term as the compiled kernels see it; valid while this object lives."""
        return address(self.data), address(self.scale), address(self.shift), self.relu

    @property
    def held_view(self) -> tuple[tuple[int, int, int, bool], bool]:
        """The same for kernels that must be told whether the data are bfloat16."""
        return self.view, self.data.dtype == torch.bfloat16


class Packed(NamedTuple):
    """What is left of blocked activations, without the rest.

    Attributes:
        bits: `(64 * chunks,)` uint8, one bit for each element in order of memory; a chunk has 512 elements.
        starts: `(chunks + 1,)` int32, values before each chunk.
        values: `(count + lanes,)` float32 or bfloat16; the last register's worth means nothing.
    """

    bits: Tensor
    starts: Tensor
    values: Tensor

    @property
    def view(self) -> tuple[int, int, int, bool]:
        """The addresses as the compiled kernels take them; valid while this object lives."""
        return address(self.bits), address(self.starts), address(self.values), self.values.dtype == torch.bfloat16
