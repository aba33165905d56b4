"""Which backend computes a case."""

from fedsparse.backends.base import Backend, Case
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.reference import ReferenceBackend
from fedsparse.errors import BackendError

__all__ = ["backend", "choose", "explain", "names", "sparse_pays"]

BACKENDS: dict[str, Backend] = {b.name: b for b in (CpuBackend(), MaskedBackend(), ReferenceBackend())}


def names() -> tuple[str, ...]:
    """What `set_backend` accepts."""
    return ("auto", *BACKENDS)


def sparse_pays(case: Case) -> bool:
    """Whether the cpu kernels are expected to beat a dense product of the same case."""
    return case.density <= 0.4


def explain(case: Case) -> dict[str, str]:
    """For each backend `auto` considers, in order: `chosen`, or why it was passed over."""
    reasons: dict[str, str] = {}
    cpu = BACKENDS["cpu"]
    reasons["cpu"] = cpu.refuse(case) or (
        "chosen" if sparse_pays(case) else f"density {case.density:.2f} is above break-even for this case"
    )
    reasons["masked"] = "not needed" if reasons["cpu"] == "chosen" else "chosen"
    return reasons


def choose(case: Case) -> Backend:
    """The backend `auto` uses for a case."""
    reasons = explain(case)
    return next(BACKENDS[name] for name, reason in reasons.items() if reason == "chosen")


def backend(name: str, case: Case) -> Backend:
    """The backend called `name`, or the chosen one for `auto`.

    Raises:
        BackendError: there is none of that name, or it cannot compute the case.
    """
    if name == "auto":
        return choose(case)
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected one of {', '.join(names())}")
    reason = BACKENDS[name].refuse(case)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot compute this {case.op}: {reason}; use set_backend(model, 'auto')")
    return BACKENDS[name]
