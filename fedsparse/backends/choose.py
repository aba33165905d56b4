"""Which backend computes a case."""

from fedsparse.backends.base import Backend, Case
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.reference import ReferenceBackend
from fedsparse.errors import BackendError

__all__ = ["backend", "break_even", "choose", "explain", "names"]

BACKENDS: dict[str, Backend] = {b.name: b for b in (CpuBackend(), MaskedBackend(), ReferenceBackend())}

_BREAK_EVEN = {"conv2d": 0.45, "linear": 0.2}
_BREAK_EVEN_BLOCKED = {"conv2d": 1.0, "linear": 0.5}
_LANES = 16  # samples per register with AVX-512


def names() -> tuple[str, ...]:
    """What `set_backend` accepts."""
    return ("auto", *BACKENDS)


def break_even(case: Case, *, blocked: bool = False) -> float:
    """Density up to which the cpu kernels beat a dense product of the same case, forward and backward together.

    A rule read off measurements (benchmarks/RESULTS.md, "Break-even density"), on the careful side: kernels gain
    until about half of a convolution's weights are kept and a fifth of a linear layer's, as long as all lanes of a
    register hold a sample; work on empty lanes is lost.
    """
    batch = case.input[0]
    full = max(-(-batch // _LANES), 1) * _LANES
    return (_BREAK_EVEN_BLOCKED if blocked else _BREAK_EVEN)[case.op] * batch / full


def explain(case: Case, *, blocked: bool = False) -> dict[str, str]:
    """For each backend `auto` considers, in order: `chosen`, or why it was passed over."""
    reasons: dict[str, str] = {}
    cpu = BACKENDS["cpu"]
    reasons["cpu"] = cpu.refuse(case) or (
        "chosen"
        if case.density <= break_even(case, blocked=blocked)
        else f"density {case.density:.2f} is above break-even, "
        f"{break_even(case, blocked=blocked):.2f} for a batch of {case.input[0]}"
    )
    reasons["masked"] = "not needed" if reasons["cpu"] == "chosen" else "chosen"
    return reasons


def choose(case: Case, *, blocked: bool = False) -> Backend:
    """The backend `auto` uses for a case."""
    reasons = explain(case, blocked=blocked)
    return next(BACKENDS[name] for name, reason in reasons.items() if reason == "chosen")


def backend(name: str, case: Case, *, blocked: bool = False) -> Backend:
    """The backend called `name`, or the chosen one for `auto`.

    Raises:
        BackendError: there is none of that name, or it cannot compute the case.
    """
    if name == "auto":
        return choose(case, blocked=blocked)
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected one of {', '.join(names())}")
    reason = BACKENDS[name].refuse(case)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot compute this {case.op}: {reason}; use set_backend(model, 'auto')")
    return BACKENDS[name]
