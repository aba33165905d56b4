"""Shares of whole numbers without surprises of binary fractions."""

import math
from fractions import Fraction

__all__ = ["as_written", "floor_share"]


def as_written(number: float) -> Fraction:
    """The decimal a float prints as, exactly: 0.29 is 29/100, not the binary neighbour 0.28999...98."""
    return Fraction(repr(float(number)))


def floor_share(share: float, total: int) -> int:
    """Largest whole number not above `share * total`, with `share` read as the decimal it prints as."""
    return math.floor(as_written(share) * total)
