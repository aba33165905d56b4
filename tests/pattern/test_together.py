"""Patterns of several weights changed, and what belongs to them moved and asked for, together."""

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pattern import Move, Pattern, carry_all, exchange_all, rebuilding
from fedsparse.pattern.rebuilding import KEPT, NOT_RISING, OUTSIDE
from fedsparse.pattern.together import growth_faults

SHAPES = [(12, 10, 3, 3), (2, 70000), (5, 4), (70000, 1)]
SHARES = [0.3, 0.3, 0.0, 1.0]


def drawn(generator):
    """Narrow and wide columns and entries, in main memory; one keeps nothing, one everything."""
    return [
        Pattern.from_mask(torch.rand(shape, generator=generator) < share)
        for shape, share in zip(SHAPES, SHARES, strict=True)
    ]


def changed(pattern):
    """A third of the values dropped, every fifth pruned position grown."""
    pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)
    return torch.arange(0, pattern.nnz, 3), pruned[::5]


def test_changes_are_those_of_each_weight(where, generator):
    patterns = drawn(generator)
    found = exchange_all([(pattern.to(where), *changed(pattern)) for pattern in patterns])
    for ours, pattern in zip(found, patterns, strict=True):
        dropped, grown = changed(pattern)
        mask = pattern.mask().view(-1)
        mask[pattern.flat[dropped]], mask[grown] = False, True
        wanted = Pattern.from_mask(mask.view(pattern.shape))
        for a, b in zip(ours.index, wanted.index, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a.cpu().to(torch.int64), b.to(torch.int64))
    assert exchange_all([]) == []


def test_arrays_follow_each_weight(where, generator):
    """Several arrays, none, of words and of other types, and some that are not contiguous."""
    patterns = drawn(generator)
    new = [pattern.exchanged(*changed(pattern)) for pattern in patterns]
    moves = []
    for number, pair in enumerate(zip(patterns, new, strict=True)):
        many = torch.randn(pair[0].nnz, 6, generator=generator).to(where)
        kinds = [many[:, 0], many[:, 1].int(), many[:, 2].contiguous(), many[:, 3], many[:, 4], many[:, 5].double()]
        moves.append(Move(pair[0].to(where), pair[1].to(where), [(one, 2.0) for one in kinds[: 2 * number]]))
    for (old, now, arrays), found in zip(moves, carry_all(moves), strict=True):
        for (entries, grown), ours in zip(arrays, found, strict=True):
            wanted = torch.full(old.shape, grown, dtype=entries.dtype).view(-1)
            wanted[old.flat.cpu()] = entries.cpu()
            pruned_before = ~old.mask().cpu().view(-1)
            wanted[pruned_before] = grown
            assert ours.dtype == entries.dtype
            assert torch.equal(ours.cpu(), wanted[now.flat.cpu()])
    assert carry_all([]) == []


def test_nothing_moves_to_another_shape(where, generator):
    first, second, *_ = (pattern.to(where) for pattern in drawn(generator))
    with pytest.raises(PatternError, match=r"from a weight of shape \(12, 10, 3, 3\) to one of shape \(2, 70000\)"):
        carry_all([Move(first, first, []), Move(first, second, [])])


def test_what_is_wrong_with_growth(where, generator):
    patterns = [pattern.to(where) for pattern in drawn(generator)[:3]]
    pruned = [(~pattern.mask()).view(-1).nonzero().squeeze(1) for pattern in patterns]
    wrong = [torch.cat([pruned[0], pruned[0][:1]]), patterns[1].flat[1:2], pruned[2] + 1]
    assert growth_faults([*zip(patterns, pruned, strict=True)]) == [0, 0, 0]
    assert growth_faults([*zip(patterns, wrong, strict=True)]) == [NOT_RISING, KEPT, OUTSIDE]


def test_in_main_memory_nobody_looks(generator):
    pattern, *_ = drawn(generator)
    assert growth_faults([(pattern, pattern.flat)]) == [None]


def test_ranks_of_wide_rows_are_as_narrow_as_they_may_be(where):
    """The host asks for the longest row only where columns do not say it."""
    for kept, kind in ((65_536, torch.uint16), (65_537, torch.int32)):
        pattern = Pattern.from_mask(torch.arange(140_000).view(2, -1) < kept).to(where)
        _, _, rank = rebuilding.by_input([pattern.row_list])[0]
        assert rank.dtype == pattern.rank.dtype == kind
        assert torch.equal(rank.cpu().int(), torch.arange(kept, dtype=torch.int32))
