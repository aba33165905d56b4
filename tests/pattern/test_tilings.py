"""Tiles of several weights at once against those of each weight by itself."""

import pytest
import torch

from fedsparse.pattern import Pattern, parse
from fedsparse.pattern.tilings import Tilings, flat_of_each

SHAPES = [(16, 8, 3, 3), (8, 24), (4, 8, 1, 5), (8, 4, 1, 1)]


@pytest.mark.parametrize("granularity", ["vector:4", "block:4", "channel"])
def test_tiles_and_their_positions(granularity, generator):
    tilings = Tilings([parse(granularity).tiling(shape) for shape in SHAPES])
    flats = [torch.randperm(tiling.positions_in_all, generator=generator)[:30] for tiling in tilings.each]
    flats[1] = flats[1][:0]
    found, starts = tilings.of(flats).split([len(flat) for flat in flats]), [0]
    for tiling, flat, tiles in zip(tilings.each, flats, found, strict=True):
        assert torch.equal(tiles - starts[-1], tiling.of(flat))
        starts.append(starts[-1] + tiling.count)
    units = torch.cat(found).unique()
    counts = tilings.counted(units)
    assert counts == [len(tiles.unique()) for tiles in found]
    assert tilings.per_tile(counts, units).tolist() == [
        tiling.size for tiling, count in zip(tilings.each, counts, strict=True) for _ in range(count)
    ]
    own = [some - start for some, start in zip(units.split(counts), starts[:-1], strict=True)]
    shuffled = [some[torch.randperm(len(some), generator=generator)] for some in own]
    for tiling, tiles, positions in zip(tilings.each, own, tilings.positions(shuffled), strict=True):
        assert torch.equal(positions, tiling.positions(tiles))


@pytest.mark.parametrize("wide", [False, True])
def test_flat_positions_of_each(wide, generator):
    shapes = [*SHAPES, (3, 70000)] if wide else SHAPES
    patterns = [Pattern.from_mask(torch.rand(shape, generator=generator) < 0.4) for shape in shapes]
    patterns += [Pattern.from_mask(torch.full((6, 65_000), full)) for full in (False, True)]
    for flat, pattern in zip(flat_of_each(patterns), patterns, strict=True):
        assert torch.equal(flat, pattern.flat)
