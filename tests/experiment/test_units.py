"""Numbers as people read them."""

import pytest

from fedsparse.experiment.over_seeds import Spread
from fedsparse.experiment.units import byte_text, decimal_text, ratio_text, second_text, spread_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_250_000, "1.25 MB"),
        (3e9, "3.00 GB"),
        (5e12, "5000.00 GB"),
        (None, "-"),
    ],
)
def test_bytes(count, text):
    assert byte_text(count) == text


def test_seconds_decimals_and_ratios():
    assert [second_text(s) for s in (None, 0.01234, 12.34, 123.4)] == ["-", "0.0123 s", "12.3 s", "123 s"]
    assert [decimal_text(v) for v in (None, 0.5)] == ["-", "0.5000"]
    assert [ratio_text(v) for v in (None, 0.123)] == ["", "0.12x"]


def test_spreads():
    assert spread_text(Spread(0.82, 0.0042), decimal_text) == "0.8200 ± 0.0042"
    assert spread_text(Spread(2e6, None), byte_text) == "2.00 MB"
    assert spread_text(None, byte_text) == "-"
