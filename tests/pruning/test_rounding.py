from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.pruning.rounding import as_meant, floor_share


@pytest.mark.parametrize(
    ("number", "fraction"),
    [
        (0.29, Fraction(29, 100)),
        (1 / 3, Fraction(1, 3)),
        (1e-05, Fraction(1, 100_000)),
        (1e-09, Fraction(1, 10**9)),
        (0.0004794181329773629, Fraction("0.0004794181329773629")),
        (1, Fraction(1)),
        (0.0, Fraction(0)),
    ],
)
def test_a_float_is_read_as_the_fraction_it_stands_for(number, fraction):
    assert as_meant(number) == fraction


@settings(deadline=None)
@given(st.floats(0, 1))
def test_the_fraction_rounds_to_the_float(number):
    assert float(as_meant(number)) == number


@pytest.mark.parametrize(("share", "total", "whole"), [(0.29, 100, 29), (0.58, 50, 29)])
def test_products_that_binary_fractions_round_down(share, total, whole):
    assert floor_share(share, total) == whole
    assert Fraction(share) * total < whole


@settings(deadline=None)
@given(st.integers(1, 10_000_000), st.data())
def test_a_count_divided_by_the_total_gives_the_count_back(total, data):
    count = data.draw(st.integers(0, total))
    assert floor_share(count / total, total) == count


def test_floor_is_a_floor():
    assert floor_share(0.1, 9) == 0
    assert floor_share(0.1, 19) == 1
    assert floor_share(0.0, 19) == 0
