"""Spellings of the unit of pruning."""

import pytest

from fedsparse.errors import PatternError
from fedsparse.pattern import Element, parse


def test_element():
    assert parse("element") == Element()
    assert str(Element()) == "element"


@pytest.mark.parametrize("text", ["vector:8", "block:16", "nm:2:4", "channel"])
def test_structures_to_come_are_named(text):
    with pytest.raises(PatternError, match=f"'{text}' is not supported by this version"):
        parse(text)


@pytest.mark.parametrize("text", ["", "Element", "block", "block:x", "nm:2", "row"])
def test_unknown(text):
    with pytest.raises(PatternError, match=f"unknown granularity '{text}'; expected 'element'"):
        parse(text)
