"""Tiles against a position-by-position definition."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.pattern import Tiling

AXES = st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 4))
TILES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, None]))


def members(tiling):
    """Flat positions of each tile, in the order of tiles."""
    found = {}
    for flat, at in enumerate(itertools.product(*map(range, tiling.axes))):
        found.setdefault(tuple(i // t for i, t in zip(at, tiling.tile, strict=True)), []).append(flat)
    return [found[key] for key in sorted(found)]


@settings(deadline=None)
@given(AXES, TILES, st.integers(0, 1000))
def test_against_the_definition(axes, tile, seed):
    tiling, generator = Tiling.of_shape(axes, tile), torch.Generator().manual_seed(seed)
    tiles, size = members(tiling), axes[0] * axes[1] * axes[2]
    assert tiling.count == len(tiles)
    assert tiling.size == max(map(len, tiles))
    assert tiling.even == (len({len(tile) for tile in tiles}) == 1)
    assert tiling.sizes().tolist() == [len(tile) for tile in tiles]
    of = tiling.of(torch.arange(size))
    assert [of[tile].unique().tolist() for tile in tiles] == [[number] for number in range(len(tiles))]
    numbers = torch.randint(-3, 4, (size,), generator=generator).double()
    assert tiling.sums(numbers.view(axes)).tolist() == [float(numbers[tile].sum()) for tile in tiles]
    spread = tiling.spread(torch.arange(len(tiles)))
    assert torch.equal(spread, of)
    some = torch.randperm(len(tiles), generator=generator)[: len(tiles) // 2]
    assert tiling.positions(some).tolist() == sorted(flat for tile in some.tolist() for flat in tiles[tile])
    ranks = tiling.ranks(numbers)
    for tile in tiles:
        ordered = sorted(tile, key=lambda flat: -numbers[flat])
        assert [int(ranks[flat]) for flat in ordered] == list(range(len(tile)))
    # Tiles of one kind have one size.
    assert len(set(zip(tiling.edge(torch.arange(len(tiles))).tolist(), map(len, tiles), strict=True))) <= 4


def test_means_count_absent_positions_as_zero():
    tiling = Tiling.of_shape((4, 3), (2, 1, 1))
    tiles, means = tiling.means_at(torch.tensor([11, 0, 3, 2]), torch.tensor([5.0, 1.0, 2.0, 4.0]))
    assert (tiles.tolist(), means.tolist()) == ([0, 2, 5], [1.5, 2.0, 2.5])
