"""Spellings of the unit of pruning, and which masks are made of whole units."""

import pickle

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pattern import NM, Block, Channel, Element, Pattern, Vector, parse

SPELLINGS = {
    "element": Element(),
    "vector:8": Vector(8),
    "block:16": Block(16),
    "nm:2:4": NM(2, 4),
    "channel": Channel(),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_spellings(text):
    assert parse(text) == SPELLINGS[text]
    assert str(SPELLINGS[text]) == text


@pytest.mark.parametrize(
    "text",
    ["", "Element", "block", "block:x", "block:-4", "nm:2", "nm:2:4:8", "row", "channel:2", "vector:" + "9" * 5000],
)
def test_unknown(text):
    with pytest.raises(PatternError, match=r"unknown granularity .*; expected 'element', 'vector:G', 'block:B'"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vector:1", "'vector:1' has units of 1; use 'element' or at least 2"),
        ("block:0", "'block:0' has units of 0"),
        ("nm:4:4", "'nm:4:4' must keep 1 to 3 of 4"),
        ("nm:0:4", "'nm:0:4' must keep 1 to 3 of 4"),
    ],
)
def test_numbers_that_make_no_unit(text, message):
    with pytest.raises(PatternError, match=message):
        parse(text)


# ---- which positions belong together: (out, in, kernel) -> number of units, positions of the first and of the last
@pytest.mark.parametrize(
    ("text", "shape", "count", "first", "last"),
    [
        ("vector:2", (4, 3), 6, [0, 3], [8, 11]),
        ("vector:2", (3, 2, 1, 2), 8, [0, 4], [11]),  # rows of 4; the last row is alone
        ("block:2", (4, 4), 4, [0, 1, 4, 5], [10, 11, 14, 15]),
        ("block:2", (3, 3, 1, 2), 8, [0, 2, 6, 8], [17]),
        ("channel", (3, 2, 2, 1), 3, [0, 1, 2, 3], [8, 9, 10, 11]),
        ("nm:2:4", (2, 3), 6, [0], [5]),
    ],
)
def test_units_by_hand(text, shape, count, first, last):
    tiling = parse(text).tiling(shape)
    assert tiling.count == count
    assert tiling.positions(torch.tensor([0])).tolist() == first
    assert tiling.positions(torch.tensor([count - 1])).tolist() == last


# ---- what is refused
@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ("vector:2", ["110", "100", "000", "000"], "at output channels 0 to 1, input channel 1: 1 of 2 positions are"),
        (
            "block:2",
            ["0011", "0011", "1100", "1000"],
            "output channels 2 to 3, input channels 0 to 1: 3 of 4 pos",
        ),
        ("channel", ["111", "011"], "at output channel 1, input channels 0 to 2: 2 of 3 positions are kept; keep all"),
        ("nm:2:4", ["11000011", "01101110"], "output channel 1, input channels 4 to 7: 3 are kept, expected 2"),
        ("nm:2:4", ["110000", "011000"], "output channel 0, input channels 4 to 5: 0 are kept, expected 1"),
        ("nm:1:4", ["000000", "000000"], "so 4 positions or more of a weight of shape .2, 6.; 0 are kept"),
    ],
)
def test_broken_units_are_named(text, rows, message):
    mask = torch.tensor([[bit == "1" for bit in row] for row in rows])
    for make in (
        lambda: Pattern.from_mask(mask, parse(text)),
        lambda: Pattern.from_flat(tuple(mask.shape), mask.view(-1).nonzero().squeeze(1), parse(text)),
    ):
        with pytest.raises(PatternError, match=message):
            make()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("vector:2", ["101", "101", "010"]),  # the last row is a group of its own
        ("block:2", ["001", "001", "110"]),
        ("nm:2:4", ["110010", "011001"]),  # of the last two input channels half, rounded up
        ("nm:1:4", ["100001"]),
        ("nm:2:4", ["1", "1"]),
        ("channel", ["111", "000"]),
    ],
)
def test_whole_units_pass_where_sizes_do_not_divide(text, rows):
    mask = torch.tensor([[bit == "1" for bit in row] for row in rows])
    pattern = Pattern.from_mask(mask, parse(text))
    assert torch.equal(pattern.mask(), mask)
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    assert pattern.digest != Pattern.from_mask(mask).digest, "another granularity is another pattern"


def test_the_kernel_position_is_named():
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[0, 1, 1, 0] = True
    with pytest.raises(PatternError, match="output channels 0 to 1, input channel 1, kernel position 2: 1 of 2"):
        Pattern.from_mask(mask, Vector(2))
