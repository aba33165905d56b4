"""Torch's semi-structured products: linear layers that keep 2 of every 4 neighbouring inputs, on sparse tensor cores.

A thin wrapper. Values change at every step, so the weight is compressed at every forward pass; both gradients are dense
products, as a transposed 2:4 weight is none. That is why no choice of `auto` falls on it: it pays for wide layers at
evaluation, and torch's own users report less than dense speed for small ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends.base import Backend, Case
from fedsparse.backends.lists import Change, PatternLists
from fedsparse.backends.masked import MaskedBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern

__all__ = ["SemiStructuredBackend"]

_KEPT, _OF = 2, 4
_ROWS, _COLUMNS = 32, 64  # what both of torch's implementations take is a multiple of these
_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class SemiStructuredBackend(MaskedBackend):
    """Forward on sparse tensor cores, all else as `masked`.

    Attributes:
        compress: makes of a dense weight one that `torch.nn.functional.linear` multiplies; another one serves tests.
        device: type of the device whose tensors it takes.
    """

    compress: Callable[[Tensor], Tensor] = torch.sparse.to_sparse_semi_structured
    device: str = "cuda"
    name = "semi_structured"
    _fitting: PatternLists[tuple[bool]] = field(default_factory=PatternLists, repr=False)

    def refuse(self, case: Case) -> str | None:
        if case.device != self.device:
            return f"sparse tensor cores belong to a CUDA device of compute capability 8.0 or more, got {case.device}"
        if case.geometry is not None:
            return "torch has semi-structured products for linear layers only; use 'masked' or 'cuda' for convolutions"
        if case.dtype not in _DTYPES:
            return f"weights must be float16 or bfloat16, got {str(case.dtype).removeprefix('torch.')}"
        if case.shape[0] % _ROWS or case.shape[1] % _COLUMNS:
            return f"outputs must be a multiple of {_ROWS} and inputs of {_COLUMNS}, got {case.shape}"
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        (fits,) = self._fitting.get(pattern, (), _fits)
        if not fits:
            raise BackendError(
                f"backend 'semi_structured' needs at most {_KEPT} kept of every {_OF} neighbouring inputs, and this "
                f"mask of {case.shape} keeps more somewhere; sparsify with granularity='nm:2:4', or use another backend"
            )
        return F.linear(x, self.compress(pattern.scatter(values)), bias)

    def rewrite(self, changes: Sequence[Change]) -> list[bool]:
        return self._fitting.rewrite(changes)


def _fits(pattern: Pattern) -> tuple[bool]:
    """Whether no four neighbouring inputs keep more than two; the host waits for the answer, once a mask."""
    fours = pattern.flat // _OF
    return (fours.numel() <= _KEPT or bool((fours[_KEPT:] != fours[:-_KEPT]).all()),)


_: type[Backend] = SemiStructuredBackend
