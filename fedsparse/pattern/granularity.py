"""The unit in which positions of a weight are kept or pruned."""

import re
from dataclasses import dataclass

from fedsparse.errors import PatternError

__all__ = ["Element", "Granularity", "parse"]

_PLANNED = re.compile(r"(vector:\d+|block:\d+|nm:\d+:\d+|channel)")


@dataclass(frozen=True)
class Element:
    """Every single weight is kept or pruned on its own."""

    def __str__(self) -> str:
        return "element"


Granularity = Element


def parse(text: str) -> Granularity:
    """Granularity from its spelling: `element`.

    Raises:
        PatternError: the spelling is unknown, or names a structure this version has no kernels for.
    """
    if text == "element":
        return Element()
    if _PLANNED.fullmatch(text):
        raise PatternError(f"granularity {text!r} is not supported by this version of fedsparse; use 'element'")
    raise PatternError(f"unknown granularity {text!r}; expected 'element'")
