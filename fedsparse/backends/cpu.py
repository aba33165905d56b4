"""The C++ kernels: float32 products vectorised over the batch, threaded with torch's threads.

Activations and their gradients may be stored as bfloat16; they are widened where they are read and sums rounded where
they are written. Values and biases may be bfloat16 too and are widened at every call.
"""

import os
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address
from fedsparse.backends.base import Backend, Case, Gradients
from fedsparse.backends.blocked import isa_of
from fedsparse.backends.term import Packed, Term
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern

__all__ = ["CpuBackend", "Term", "blocked_shape", "from_blocked", "lanes", "to_blocked"]

_LIMIT = 1 << 29  # floats whose distance in bytes has 32 bits
_SET = "FEDSPARSE_ISA"
_DTYPES = (torch.float32, torch.bfloat16)


@cache
def _best() -> str:
    """The instruction set in use: the best one, or the one that the environment variable FEDSPARSE_ISA names."""
    return os.environ.get(_SET) or next(iter(_native.instruction_sets()))


def lanes(isa: str | None = None) -> int:
    """Images that a line of blocked activations holds."""
    known, isa = _native.instruction_sets(), isa or _best()
    if isa not in known:
        raise BackendError(f"instruction set {isa!r} does not run here; this processor has: {', '.join(known)}")
    return known[isa]


def to_blocked(x: Tensor, isa: str | None = None) -> Tensor:
    """`(batch, channels, height, width)` or `(batch, features)` -> `(groups, channels, height, width, lanes)`.

    Of the same dtype, float32 or bfloat16.
    """
    x, isa = x.contiguous(), isa or _best()
    blocked = x.new_empty(blocked_shape(tuple(x.shape), lanes(isa)))
    size, half = x.numel() // x.shape[0], x.dtype == torch.bfloat16
    _native.extension().to_blocked(isa, x.shape[0], size, half, address(x), address(blocked), torch.get_num_threads())
    return blocked


def from_blocked(blocked: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Blocked activations as a contiguous tensor of `shape`, `(batch, channels, height, width)` or 2-D."""
    x = blocked.new_empty(shape)
    size, half = x.numel() // shape[0], x.dtype == torch.bfloat16
    _native.extension().from_blocked(
        isa_of(blocked.shape[-1]), shape[0], size, half, address(blocked), address(x), torch.get_num_threads()
    )
    return x


@dataclass(frozen=True)
class CpuBackend:
    """Gather kernels over batch-innermost lines (csrc/cpu/gather.h).

    Attributes:
        isa: instruction set, one of `fedsparse._native.instruction_sets()`; None takes the best.
    """

    isa: str | None = None
    name = "cpu"

    def refuse(self, case: Case) -> str | None:
        if case.device != "cpu":
            return f"cpu kernels read main memory, the tensors are on {case.device}"
        if case.dtype not in _DTYPES:
            return f"cpu kernels compute float32 and bfloat16, the tensors are {str(case.dtype).removeprefix('torch.')}"
        if case.input[0] == 0:
            return "the batch is empty"
        if _halo_floats(case) >= _LIMIT:
            return f"offsets inside a tile of 16 images of shape {case.input[1:]} exceed 32 bits"
        return None

    # ---- plain tensors
    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        y = self.forward_blocked(Term(to_blocked(x, self.isa)), values, pattern, bias, case)
        return from_blocked(y, case.output)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        term = Term(to_blocked(x, self.isa)) if want[1] else None
        found = self.backward_blocked(to_blocked(grad, self.isa), term, values, pattern, want[0], case)
        return Gradients(None if found.x is None else from_blocked(found.x, case.input), found.values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        blocked_grad, term = to_blocked(grad, self.isa), Term(to_blocked(x, self.isa))
        positions, gradients = self.topk_pruned_blocked(blocked_grad, term, pattern, k, case)
        return positions, gradients.to(grad.dtype)

    def topk_pruned_units(
        self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, tile: tuple[int, int, int], case: Case
    ) -> tuple[Tensor, Tensor]:
        """`topk_pruned` of units, as `topk_pruned_blocked` finds them."""
        blocked_grad, term = to_blocked(grad, self.isa), Term(to_blocked(x, self.isa))
        positions, gradients = self.topk_pruned_blocked(blocked_grad, term, pattern, k, case, tile=tile)
        return positions, gradients.to(grad.dtype)

    # ---- blocked activations
    def forward_blocked(self, x: Term, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        """The product, blocked, of the dtype of x; values and bias may be float32 where x is bfloat16."""
        native, problem = _native.extension(), self._problem(pattern, case)
        values, bias = values.float(), None if bias is None else bias.float()
        y = x.data.new_empty(blocked_shape(case.output, x.data.shape[-1]))
        arguments = (native.forward_strips(problem), x.view, address(values), address(bias), address(y))
        workspace = _workspace(native.forward(problem, *arguments, 0))
        native.forward(problem, *arguments, address(workspace))
        return y

    def backward_blocked(
        self, grad: Tensor, x: Term | Packed | None, values: Tensor, pattern: Pattern, want_x: bool, case: Case
    ) -> Gradients:
        """Blocked gradient of the input, if wanted, and of the values, if `x`, what was saved of it, is given.

        That of the input has the dtype of `grad`, that of the values theirs.
        """
        native, problem = _native.extension(), self._problem(pattern, case)
        dtype, values = values.dtype, values.float()
        grad_x = grad.new_empty(blocked_shape(case.input, grad.shape[-1])) if want_x else None
        grad_values = None if x is None else torch.empty_like(values)
        saved = _saved(x)
        strips = native.backward_strips(problem, *saved, x is not None)
        arguments = (strips, address(grad), *saved, address(values), address(grad_x), address(grad_values))
        workspace = _workspace(native.backward(problem, *arguments, 0))
        native.backward(problem, *arguments, address(workspace))
        return Gradients(grad_x, None if grad_values is None else grad_values.to(dtype))

    def topk_pruned_blocked(
        self,
        grad: Tensor,
        x: Term,
        pattern: Pattern,
        k: int,
        case: Case,
        lines: tuple[Tensor, Tensor] | None = None,
        tile: tuple[int, int, int] = (1, 1, 1),
    ) -> tuple[Tensor, Tensor]:
        """`topk_pruned` of a blocked gradient and a term of its dtype, uncut; gradients float32.

        With `lines`, slope and offset `(out,)` float32, of `slope * gradient + offset` by row. Tiles (see
        `pattern.Tiling`) of more than one position are found as a whole, by falling mean square, ties by number: from
        the first on as many as have at most k positions together, with ascending positions each.
        """
        native, problem = _native.extension(), self._problem(pattern, case)
        positions, gradients = torch.empty(k, dtype=torch.int64), torch.empty(k)
        slope, offset = lines or (None, None)
        view = x.view
        term = (address(grad), view[:3], view[3], (address(slope), address(offset)))
        found = (k, address(positions), address(gradients))
        if tile == (1, 1, 1):
            workspace = _workspace(native.topk_pruned(problem, *term, *found, 0))
            native.topk_pruned(problem, *term, *found, address(workspace))
            return positions, gradients
        workspace = _workspace(native.topk_pruned_units(problem, *term, tile, *found, 0))
        count = native.topk_pruned_units(problem, *term, tile, *found, address(workspace))
        return positions[:count], gradients[:count]

    def strip_widths(self, pattern: Pattern, case: Case) -> tuple[int, int]:
        """Neighbouring channels, kept alike, that forward and backward take together; 1 where each goes by itself."""
        native, problem = _native.extension(), self._problem(pattern, case)
        return native.forward_strips(problem).width, native.backward_strips(problem, *_saved(None), False).width

    def _problem(self, pattern: Pattern, case: Case) -> object:
        native, threads, isa = _native.extension(), torch.get_num_threads(), self.isa or _best()
        half = case.dtype == torch.bfloat16
        if case.geometry is None:
            return native.linear_problem(isa, pattern.view, case.input[0], threads, half)
        g = case.geometry
        sizes = (*case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups)
        return native.conv2d_problem(isa, pattern.view, sizes, threads, half)


def _saved(x: Term | Packed | None) -> tuple[object, object, object]:
    """What the backward kernel takes for x: a term, its cuts, packed values."""
    nothing, uncut = (0, 0, 0, False), (0, 0)
    if isinstance(x, Packed):
        return (nothing, False), uncut, x.view
    if x is None:
        return (nothing, False), uncut, nothing
    cuts = uncut if x.cuts is None else (address(x.cuts.key), address(x.cuts.last))
    return x.held_view, cuts, nothing


def blocked_shape(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Shape of the blocked form, with `width` lanes, of a tensor of `shape`."""
    sizes = (shape[1], 1, 1) if len(shape) == 2 else shape[1:]
    return (-(-shape[0] // width), *sizes, width)


def _workspace(size: int) -> Tensor:
    # From torch's allocator, so that memory measurements see it; 64-byte aligned as the kernels ask.
    return torch.empty(size, dtype=torch.uint8)


def _halo_floats(case: Case) -> int:
    """Upper bound of the floats in the halo of a tile, forward or backward."""
    if case.geometry is None:
        return max(case.shape) * 16 * 16
    g, kernel = case.geometry, case.shape[2:]
    high, wide = (4 * s + d * (k - 1) for s, d, k in zip(g.stride, g.dilation, kernel, strict=True))
    return max(case.input[1], case.shape[0]) * high * wide * 16


_: type[Backend] = CpuBackend
