"""Numbers as people read them."""

from collections.abc import Callable

from fedsparse.experiment.over_seeds import Spread

__all__ = ["byte_text", "decimal_text", "ratio_text", "second_text", "spread_text"]

MISSING = "-"


def byte_text(count: float | None) -> str:
    """Bytes in the largest decimal unit that leaves at least 1: `1.25 MB`."""
    if count is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: GB ends the loop")


def second_text(seconds: float | None) -> str:
    """Seconds with a precision that fits their size."""
    return MISSING if seconds is None else f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def decimal_text(value: float | None, digits: int = 4) -> str:
    """A share or a loss."""
    return MISSING if value is None else f"{value:.{digits}f}"


def ratio_text(value: float | None) -> str:
    """A quantity relative to the dense run's: `0.12x`."""
    return "" if value is None else f"{value:.2f}x"


def spread_text(spread: Spread | None, text: Callable[[float | None], str]) -> str:
    """A mean and, where there is one, its standard error: `0.8210 ± 0.0042`."""
    if spread is None:
        return MISSING
    return text(spread.mean) if spread.error is None else f"{text(spread.mean)} ± {text(spread.error)}"
