"""Shares of whole numbers without surprises of binary fractions."""

import math
from fractions import Fraction

__all__ = ["as_meant", "floor_share"]

_LARGEST_DENOMINATOR = 10_000_000  # two such fractions differ by 1e-14 or more, so no float stands for both


def as_meant(number: float) -> Fraction:
    """The fraction that a float stands for: 0.29 is 29/100 and 1 / 3 is a third, not their binary neighbours.

    That is the fraction with a denominator up to ten million that rounds to the float; where none does, it
    is the decimal the float prints as. Order is kept.
    """
    number = float(number)
    fraction = Fraction(number).limit_denominator(_LARGEST_DENOMINATOR)
    return fraction if float(fraction) == number else Fraction(repr(number))


def floor_share(share: float, total: int) -> int:
    """Largest whole number not above `share * total`, with `share` read as the fraction it stands for."""
    return math.floor(as_meant(share) * total)
