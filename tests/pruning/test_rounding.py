from fractions import Fraction

import pytest

from fedsparse.pruning.rounding import as_written, floor_share


def test_a_float_is_read_as_the_decimal_it_prints_as():
    assert as_written(0.29) == Fraction(29, 100)
    assert as_written(1e-05) == Fraction(1, 100_000)
    assert as_written(1) == 1


@pytest.mark.parametrize(("share", "total"), [(0.29, 100), (0.57, 100), (0.58, 100), (1.1, 10)])
def test_products_that_binary_floats_would_round_down(share, total):
    assert floor_share(share, total) == round(share * total)


def test_some_of_them_really_fail_in_binary():
    assert int(0.29 * 100) == 28


def test_floor_is_a_floor():
    assert floor_share(0.1, 9) == 0
    assert floor_share(0.1, 19) == 1
    assert floor_share(0.0, 19) == 0
