"""Tiles of taps against the mask they come from."""

import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.backends.tap_tiles import build, rows_of
from fedsparse.pattern import Pattern
from tests.kernels.masks import block_mask, vector_mask

SHARED = (64, 32, 16, 1)


def case_of(mask, groups=1):
    pattern = Pattern.from_mask(mask)
    if mask.dim() == 2:
        return pattern, Case(tuple(mask.shape), (3, mask.shape[1]), pattern.nnz)
    size = (2, mask.shape[1] * groups, 9, 9)
    return pattern, Case(tuple(mask.shape), size, pattern.nnz, Geometry(groups=groups))


def dense_of(tiles, values, rows, columns):
    """The matrix that a product with these tiles multiplies with, entry by entry."""
    packed, dense, at = tiles.pack(values), torch.zeros(rows, columns), 0
    for tile in range(tiles.start.numel() - 1):
        entries = tiles.entry[int(tiles.start[tile]) : int(tiles.start[tile + 1])].long()
        assert torch.equal(entries, entries.unique())  # ascending, each once
        for row in range(tile * tiles.rows, min((tile + 1) * tiles.rows, rows)):
            dense[row, entries] = packed[at : at + len(entries)]
            at += len(entries)
        at = int(tiles.start[tile + 1]) * tiles.rows
    return dense


def matrix_of(pattern, values, groups, transposed):
    """The same from the dense weight: rows of the product by source channel * area + place."""
    out, inputs, area = pattern.shape[0], pattern.shape[1], pattern.mask()[0, 0].numel()
    weight = pattern.scatter(values).view(out, inputs, area)
    whole = torch.zeros(out, groups * inputs, area)
    for row in range(out):
        first = row // (out // groups) * inputs
        whole[row, first : first + inputs] = weight[row]
    return (whole.transpose(0, 1) if transposed else whole).flatten(1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("mask", "groups", "candidates"),
    [
        (torch.rand(21, 30, generator=torch.Generator().manual_seed(1)) < 0.3, 1, (16,)),
        (torch.rand(21, 30, generator=torch.Generator().manual_seed(1)) < 0.3, 1, (1,)),
        (torch.rand(6, 4, 3, 2, generator=torch.Generator().manual_seed(2)) < 0.4, 3, (16,)),
        (torch.rand(6, 4, 3, 2, generator=torch.Generator().manual_seed(2)) < 0.4, 3, (1,)),
        (vector_mask((48, 7, 3, 3), 16, 0.3), 1, SHARED),
        (vector_mask((48, 7), 24, 0.3), 1, (16,)),
        (block_mask((32, 64, 3, 3), 32, 0.4), 1, SHARED),
        (vector_mask((32, 4, 2, 2), 16, 0.5), 2, SHARED),
        (torch.zeros(20, 5, dtype=torch.bool), 1, (16,)),
        (torch.ones(20, 5, dtype=torch.bool), 1, (16,)),
    ],
)
def test_tiles_hold_the_weight(mask, groups, candidates, transposed):
    pattern, case = case_of(mask, groups)
    values = torch.arange(1.0, pattern.nnz + 1)
    tiles = build(pattern, case, candidates, transposed=transposed)
    wanted = matrix_of(pattern, values, groups, transposed)
    assert torch.equal(dense_of(tiles, values, *wanted.shape), wanted)
    assert torch.equal(tiles.unpack(tiles.pack(values)), values)
    assert tiles.longest == int((tiles.start[1:] - tiles.start[:-1]).max())


@pytest.mark.parametrize(
    ("mask", "rows", "back"),
    [
        (vector_mask((128, 9), 64, 0.4), 64, 1),
        (vector_mask((32, 9, 3, 3), 16, 0.4), 16, 1),
        (block_mask((96, 160), 32, 0.4), 32, 32),
        (block_mask((32, 32, 3, 3), 16, 0.4), 16, 16),
        (torch.rand(32, 40, generator=torch.Generator().manual_seed(3)) < 0.3, 1, 1),
        # equally many in every row, but elsewhere
        (torch.eye(32, dtype=torch.bool), 1, 1),
    ],
)
def test_shared_taps_are_found_without_a_name(mask, rows, back):
    pattern, case = case_of(mask)
    forward = build(pattern, case, rows_of(pattern), transposed=False)
    assert forward.rows == rows
    assert forward.slot is None
    assert build(pattern, case, SHARED, transposed=True).rows == back


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("element", SHARED), ("nm:2:4", SHARED), ("channel", (16,)), ("vector:4", (16,)), ("vector:16", (16,)),
        ("vector:24", (16,)), ("vector:32", (32,)), ("vector:256", (64,)), ("block:8", (16,)), ("block:64", (64,)),
    ],
)  # fmt: skip
def test_rows_follow_from_the_granularity(name, rows):
    class Named:
        granularity = name

    assert rows_of(Named()) == rows


def test_taps_that_run_over_features_are_told():
    for mask, runs in ((block_mask((32, 64), 16, 0.4), True), (vector_mask((32, 64), 16, 0.4), False)):
        pattern, case = case_of(mask)
        assert build(pattern, case, SHARED, transposed=False).runs == runs
