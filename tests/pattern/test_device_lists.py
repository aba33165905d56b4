"""Lists of a pattern made by torch, as on a device, against the compiled ones; kernels on the CPU and on a device."""

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, carried, device_lists, parse

SHAPES = [(5, 7), (12, 10, 3, 3), (3, 1, 5, 1), (70000, 2), (2, 70000), (4, 3, 2, 2)]


def drawn(shape, share, generator):
    return torch.rand(shape, generator=generator) < share


@pytest.mark.parametrize("share", [-1.0, 0.3, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_lists_of_a_mask_are_the_compiled_ones(shape, share, generator):
    mask = drawn(shape, share, generator)
    wanted = Pattern.from_mask(mask)
    rows = device_lists.rows_of_flat(shape, mask.view(-1).nonzero().squeeze(1))
    for ours, theirs in zip((*rows, *device_lists.transposed(shape, *rows)), wanted.index, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.to(torch.int64), theirs.to(torch.int64))


@pytest.mark.parametrize("shares", [(0.3, 0.3), (-1.0, 0.5), (0.5, -1.0), (2.0, 0.2)])
def test_places_are_those_that_are_carried(shares, generator):
    old, new = (Pattern.from_mask(drawn((12, 10, 3, 3), share, generator)) for share in shares)
    found = device_lists.places(old.flat, new.flat)
    assert found.dtype == torch.int32
    assert torch.equal(found, old.carry_to(new))


def test_the_first_kept_position(generator):
    pattern = Pattern.from_mask(drawn((12, 10), 0.3, generator))
    pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)
    assert device_lists.first_of(pattern.flat, pruned) is None
    assert device_lists.first_of(pattern.flat, pruned[:0]) is None
    mixed = torch.cat([pruned[::2], pattern.flat[[3, 9]]]).sort().values
    assert device_lists.first_of(pattern.flat, mixed) == pattern.first_kept(mixed) == int(pattern.flat[3])


def test_an_exchange_on_the_device(where, generator):
    """The pattern of the exchanged mask, in the same memory; values and bits of another type move along."""
    mask = drawn((12, 10, 3, 3), 0.3, generator)
    old, pruned = Pattern.from_mask(mask).to(where), (~mask).view(-1).nonzero().squeeze(1)
    dropped, grown = torch.arange(1, old.nnz, 3), pruned[::5]
    found, changed = old.exchanged(dropped, grown), mask.view(-1).clone()
    changed[old.flat.cpu()[dropped]] = False
    changed[grown] = True
    assert found.column.device == torch.device(where)
    wanted = Pattern.from_mask(changed.view(mask.shape))
    assert found == wanted
    for ours, theirs in zip(found.index, wanted.index, strict=True):
        assert torch.equal(ours.cpu().to(torch.int64), theirs.to(torch.int64))
    dense = torch.randn(mask.shape, generator=generator)
    values, places = dense[mask].to(where), old.carry_to(found)
    kept = (mask & changed.view(mask.shape))[changed.view(mask.shape)]
    expected = torch.where(kept, dense[changed.view(mask.shape)], -1.5)
    assert torch.equal(carried(values, places, -1.5).cpu(), expected)
    numbers = torch.arange(old.nnz, dtype=torch.int32, device=where)
    assert torch.equal(carried(numbers, places, -7.0), torch.where(places >= 0, places, -7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("granularity", ["element", "vector:4", "block:3", "channel"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_device_makes_the_same_pattern(shape, granularity, generator):
    unit, device = parse(granularity), torch.device("cuda:0")
    tiling = unit.tiling(shape)
    mask = tiling.spread(drawn((tiling.count,), 0.3, generator)).view(shape)
    wanted, found = Pattern.from_mask(mask, unit), Pattern.from_mask(mask.cuda(), unit, device=device)
    assert found.column.device.type == "cuda"
    for ours, theirs in zip(found.index, wanted.index, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu().to(torch.int64), theirs.to(torch.int64))
    turned = mask.cuda().transpose(0, 1)  # memory that is not in order
    assert Pattern.from_mask(turned, device=device) == Pattern.from_mask(mask.transpose(0, 1))
    if tiling.size > 1 and mask.any():
        mask.view(-1)[mask.view(-1).nonzero()[0]] = False
        with pytest.raises(PatternError, match="keeps or prunes whole units"):
            Pattern.from_mask(mask.cuda(), unit, device=device)
    other = Pattern.from_mask(drawn(shape, 0.4, generator))
    assert torch.equal(found.carry_to(other.to("cuda:0")).cpu(), wanted.carry_to(other))
