"""Which backend computes a case."""

import math
from collections.abc import Sequence

from fedsparse.backends.base import Backend, Case, HandsListsOn, KeepsLists, layout_of
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.cuda import CudaBackend
from fedsparse.backends.layout import Layout
from fedsparse.backends.lists import Change
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.reference import ReferenceBackend
from fedsparse.backends.semi_structured import SemiStructuredBackend
from fedsparse.backends.triton import TritonBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern

__all__ = ["backend", "break_even", "choose", "explain", "hand_lists_on", "layout", "names", "rewrite_lists"]

# `auto` considers none of those on a device: nobody has measured yet where they beat a dense product.
_ALL: tuple[Backend, ...] = (
    CpuBackend(), CudaBackend(), TritonBackend(), SemiStructuredBackend(), MaskedBackend(), ReferenceBackend(),
)  # fmt: skip
BACKENDS = {b.name: b for b in _ALL}

# By a layer itself, conversions between layouts included, and between others of its kind.
_BREAK_EVEN = {"conv2d": 0.3, "linear": 0.1}
_BREAK_EVEN_BLOCKED = {"conv2d": 0.7, "linear": 0.25}
# Of convolutions whose kernels take neighbouring channels together going forward, and going backward as well.
_BREAK_EVEN_STRIPS = (0.4, 0.45)
_BREAK_EVEN_STRIPS_BLOCKED = (0.75, 0.8)
# Leaving the kernels' layout for one dense product costs about what this many weights per output channel cost.
_CONVERSION = 300
# Products per number that a 1x1 convolution by itself must have, or moving its pictures between layouts costs more than
# all that dense arithmetic takes: 64 -> 128 channels with stride 2 have 21, 256 -> 512 have 85.
_POINTWISE_WORK = 60
_LANES = 16  # samples per register with AVX-512


def names() -> tuple[str, ...]:
    """What `set_backend` accepts."""
    return ("auto", *BACKENDS)


def break_even(case: Case, *, blocked: bool = False, strips: tuple[int, int] = (1, 1)) -> float:
    """Density up to which the cpu kernels beat a dense product of the same case, forward and backward together.

    A rule read off measurements (benchmarks/RESULTS.md, "Products"), on the careful side, as long as all lanes of a
    register hold a sample; work on empty lanes is lost. With `blocked`, the layer stands in a network whose activations
    are in the kernels' layout already: then the dense product pays for leaving and entering it. `strips` is what
    `CpuBackend.strip_widths` finds in the mask. The measurements are of float32; bfloat16 follows the same rule.
    """
    batch = case.input[0]
    full = max(-(-batch // _LANES), 1) * _LANES
    if blocked and case.op == "conv2d" and math.prod(case.shape[1:]) < _CONVERSION:
        return batch / full
    if not blocked and case.shape[2:] == (1, 1) and _work(case) < _POINTWISE_WORK:
        return 0.0
    shared = sum(width > 1 for width in strips)
    if shared and case.op == "conv2d":
        return (_BREAK_EVEN_STRIPS_BLOCKED if blocked else _BREAK_EVEN_STRIPS)[shared - 1] * batch / full
    return (_BREAK_EVEN_BLOCKED if blocked else _BREAK_EVEN)[case.op] * batch / full


def _work(case: Case) -> float:
    """Products of the dense convolution over the numbers of its input and output."""
    places = math.prod(case.output[2:])
    return math.prod(case.shape) * places / (math.prod(case.input[1:]) + case.shape[0] * places)


def explain(case: Case, pattern: Pattern | None = None, *, blocked: bool = False) -> dict[str, str]:
    """For each backend `auto` considers, in order: `chosen`, or why it was passed over.

    Without `pattern`, its mask is taken as one of single weights.
    """
    refusal = BACKENDS["cpu"].refuse(case)
    if refusal is None:
        bound = _bound(case, pattern, blocked=blocked)
        if case.density <= bound:
            return {"cpu": "chosen", "masked": "not needed"}
        refusal = f"density {case.density:.2f} is above break-even, {bound:.2f} for a batch of {case.input[0]}"
    return {"cpu": refusal, "masked": "chosen"}


def choose(case: Case, pattern: Pattern | None = None, *, blocked: bool = False) -> Backend:
    """The backend `auto` uses for a case; see `explain`."""
    pays = BACKENDS["cpu"].refuse(case) is None and _pays(case, pattern, blocked=blocked)
    return BACKENDS["cpu" if pays else "masked"]


def _pays(case: Case, pattern: Pattern | None, *, blocked: bool) -> bool:
    """Whether a case is below its break-even density. Its mask is read only where that decides, for it takes time."""
    least, most = (break_even(case, blocked=blocked, strips=widths) for widths in ((1, 1), (2, 2)))
    return case.density <= least or (case.density <= most and case.density <= _bound(case, pattern, blocked=blocked))


def _bound(case: Case, pattern: Pattern | None, *, blocked: bool) -> float:
    """The break-even density of a case and its mask."""
    strips = (1, 1) if pattern is None else CpuBackend().strip_widths(pattern, case)
    return break_even(case, blocked=blocked, strips=strips)


def backend(name: str, case: Case, pattern: Pattern | None = None, *, blocked: bool = False) -> Backend:
    """The backend called `name`, or for `auto` the one chosen for a case and its mask.

    Raises:
        BackendError: there is none of that name, or it cannot compute the case.
    """
    if name == "auto":
        return choose(case, pattern, blocked=blocked)
    reason = _named(name).refuse(case)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot compute this {case.op}: {reason}; use set_backend(model, 'auto')")
    return BACKENDS[name]


def layout(name: str, case: Case) -> Layout:
    """How the results of the backend called `name` lie, for a case that it may refuse. `auto`'s all lie alike.

    Raises:
        BackendError: there is none of that name.
    """
    return layout_of(BACKENDS["masked"] if name == "auto" else _named(name), case)


def _named(name: str) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected one of {', '.join(names())}")
    return BACKENDS[name]


def rewrite_lists(changes: Sequence[Change]) -> list[bool]:
    """Of each change whether all that backends derived from the old pattern could be written anew, in place.

    Where one list could not, the others are void: the old pattern's index tensors must not be used any more.
    """
    answers = [one.rewrite(changes) for one in BACKENDS.values() if isinstance(one, KeepsLists)]
    return [all(of_change) for of_change in zip(*answers, strict=True)]


def hand_lists_on(changes: Sequence[Change]) -> None:
    """Has lists ready for patterns that take the place of others, as far as that is faster for all at once."""
    for one in BACKENDS.values():
        if isinstance(one, HandsListsOn):
            one.hand_on(changes)
