"""What one message says: a task, a round, weights, and named extras of a few types."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, Union

import torch
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern import Topology, Weights

__all__ = ["IndexSet", "Payload", "Quantized", "Section", "SignMap", "SparseVector"]

_LARGEST_SIZE = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class IndexSet:
    """Some positions of an array of `size` entries.

    Attributes:
        size: entries of the array, below 2**31.
        indices: `(k,)` int64 flat positions, ascending and distinct.
    """

    size: int
    indices: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.size <= _LARGEST_SIZE:
            raise PatternError(f"{type(self).__name__}: size must be in [0, {_LARGEST_SIZE}], got {self.size}")
        if self.indices.dtype != torch.int64 or self.indices.ndim != 1:
            raise PatternError(
                f"{type(self).__name__}: indices must be one-axis int64, "
                f"got {self.indices.dtype} of shape {tuple(self.indices.shape)}"
            )
        if self.indices.numel() == 0:
            return
        ascending = bool((self.indices[1:] > self.indices[:-1]).all())
        if not ascending or self.indices[0] < 0 or self.indices[-1] >= self.size:
            raise PatternError(f"{type(self).__name__}: indices must ascend without repetition inside [0, {self.size})")


@dataclass(frozen=True, eq=False)
class SparseVector(IndexSet):
    """Some entries of an array of `size` entries, with their values; the others are absent or 0.

    Attributes:
        values: `(k,)` float32, one for each of `indices`.
    """

    values: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.dtype != torch.float32 or self.values.shape != self.indices.shape:
            raise PatternError(
                f"SparseVector: values must be float32 of shape {tuple(self.indices.shape)}, "
                f"got {self.values.dtype} of shape {tuple(self.values.shape)}"
            )


@dataclass(frozen=True, eq=False)
class SignMap(IndexSet):
    """Signs of an array of `size` entries: where they are not 0, and which.

    Attributes:
        signs: `(k,)` int8, 1 or -1 for each of `indices`.
    """

    signs: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signs.dtype != torch.int8 or self.signs.shape != self.indices.shape:
            raise PatternError(
                f"SignMap: signs must be int8 of shape {tuple(self.indices.shape)}, "
                f"got {self.signs.dtype} of shape {tuple(self.signs.shape)}"
            )
        if bool((self.signs.abs() != 1).any()):
            raise PatternError("SignMap: signs are 1 or -1; entries without a sign are left out")

    @classmethod
    def of(cls, numbers: Tensor) -> "SignMap":
        """Signs of a tensor of any shape, by flat position."""
        signs = numbers.detach().cpu().reshape(-1).sign().to(torch.int8)
        indices = signs.nonzero().squeeze(1)
        return cls(signs.numel(), indices, signs[indices])

    def dense(self) -> Tensor:
        """All signs, `(size,)` int8 of -1, 0 and 1."""
        return torch.zeros(self.size, dtype=torch.int8).index_copy(0, self.indices, self.signs)


@dataclass(frozen=True, eq=False)
class Quantized:
    """Numbers on an even grid from -scale to scale: `scale * codes / limit`.

    Attributes:
        codes: any shape, int8 in [-127, 127] or int16 in [-32767, 32767].
        scale: magnitude of the outermost codes, not negative and within the range of float32.
    """

    codes: Tensor
    scale: float

    def __post_init__(self) -> None:
        if self.codes.dtype not in (torch.int8, torch.int16):
            raise PatternError(f"Quantized: codes must be int8 or int16, got {self.codes.dtype}")
        if bool((self.codes < -self.limit).any()):
            raise PatternError(f"Quantized: codes must be in [-{self.limit}, {self.limit}], got {-self.limit - 1}")
        if not 0 <= self.scale <= torch.finfo(torch.float32).max:
            raise PatternError(f"Quantized: scale must be in the range of float32 and not negative, got {self.scale}")

    @classmethod
    def of(cls, numbers: Tensor, dtype: torch.dtype, generator: torch.Generator) -> "Quantized":
        """Nearest grid points above or below, drawn so that the expected value of each is its number.

        The scale is the largest magnitude; a number a share p of the way up to the next point goes there with
        probability p. `dtype` is that of the codes; the generator's device is the CPU.

        Raises:
            PatternError: a number that is not finite, or another dtype.
        """
        if dtype not in (torch.int8, torch.int16):
            raise PatternError(f"Quantized: codes must be int8 or int16, got {dtype}")
        exact, limit = numbers.detach().cpu().double(), torch.iinfo(dtype).max
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        if not math.isfinite(scale):
            raise PatternError(f"Quantized: numbers must be finite, the largest magnitude is {scale}")
        steps = exact / scale * limit if scale else torch.zeros_like(exact)
        draws = torch.rand(exact.shape, generator=generator, dtype=torch.float64)
        return cls((steps + draws).floor().clamp(-limit, limit).to(dtype), scale)

    @property
    def limit(self) -> int:
        """Code of `scale`."""
        return torch.iinfo(self.codes.dtype).max

    def numbers(self) -> Tensor:
        """What the codes stand for, float64 and shaped like them."""
        return self.codes.double() * (self.scale / self.limit)


Section: TypeAlias = Union[  # noqa: UP007 (the recursive reference needs a string)
    Tensor,
    Topology,
    Weights,
    SparseVector,
    SignMap,
    IndexSet,
    Quantized,
    bool,
    int,
    float,
    str,
    Mapping[str, "Section"],
]


@dataclass(frozen=True, eq=False)
class Payload:
    """One message between server and client.

    Attributes:
        task: what is asked for, or answered.
        round: round of the run, from 0.
        weights: the model, where it travels.
        extras: everything else, by name.
    """

    task: str
    round: int
    weights: Weights | None = None
    extras: Mapping[str, Section] = field(default_factory=dict)
