"""Patterns against dense bool masks."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, carried

# Examples follow from the test, so that every run tries the same ones.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=80, database=None)
settings.load_profile("fixed")


@st.composite
def shapes(draw):
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3), (2, 5), (7, 1)]))
    return draw(st.integers(1, 9)), draw(st.integers(1, 13)), *kernel


@st.composite
def masks(draw, shape=None):
    shape = draw(shapes()) if shape is None else shape
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    return torch.rand(shape, generator=generator) < density


@st.composite
def two_masks(draw):
    shape = draw(shapes())
    return draw(masks(shape)), draw(masks(shape))


def numbers(pattern, seed=0):
    """Distinct values, so that a value in the wrong place shows."""
    return torch.randperm(pattern.nnz, generator=torch.Generator().manual_seed(seed)) + 1.0


def dense(mask, values, other=0.0):
    """What `values` in row order mean."""
    weight = torch.full(mask.shape, other, dtype=values.dtype)
    weight[mask] = values
    return weight


@given(masks())
def test_mask_there_and_back(mask):
    pattern = Pattern.from_mask(mask)
    assert torch.equal(pattern.mask(), mask)
    assert (pattern.nnz, pattern.size, pattern.shape) == (int(mask.sum()), mask.numel(), tuple(mask.shape))
    assert pattern.density == pytest.approx(mask.float().mean().item())
    assert torch.equal(pattern.flat, mask.view(-1).nonzero().squeeze(1))
    assert torch.equal(pattern.rows, mask.flatten(1).nonzero()[:, 0])
    assert Pattern.from_flat(pattern.shape, pattern.flat) == pattern


@given(masks())
def test_scatter_and_gather(mask):
    pattern = Pattern.from_mask(mask)
    values = numbers(pattern)
    assert torch.equal(pattern.scatter(values), dense(mask, values))
    everywhere = torch.arange(mask.numel(), dtype=torch.float32).view(mask.shape)
    assert torch.equal(pattern.gather(everywhere), everywhere[mask])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64]
)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_scatter_and_gather_any_dtype(dtype, density, generator):
    mask = torch.rand((5, 3, 2, 2), generator=generator) < density
    pattern = Pattern.from_mask(mask)
    values = numbers(pattern).to(dtype)
    assert torch.equal(pattern.scatter(values), dense(mask, values))
    assert torch.equal(pattern.gather(dense(mask, values, 7)), values)
    assert pattern.scatter(values).dtype == dtype


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_scatter_and_gather_share_no_memory(density, generator):
    pattern = Pattern.from_mask(torch.rand((5, 6), generator=generator) < density)
    values = numbers(pattern)
    weight = pattern.scatter(values)
    found = pattern.gather(weight)
    weight.fill_(-1.0)
    assert torch.equal(values, numbers(pattern))
    assert torch.equal(found, values)


def test_scatter_and_gather_take_any_strides(generator):
    mask = torch.rand((6, 4, 3, 3), generator=generator) < 0.5
    pattern = Pattern.from_mask(mask)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    assert torch.equal(pattern.gather(weight.to(memory_format=torch.channels_last)), weight[mask])
    values = torch.randn(pattern.nnz * 2, generator=generator)[::2]
    assert torch.equal(pattern.scatter(values), dense(mask, values))
    strided = Pattern.from_mask(mask.to(memory_format=torch.channels_last))
    assert strided == pattern


def test_scatter_and_gather_carry_gradients(generator):
    """The derivative of either is the other."""
    mask = torch.rand((4, 5), generator=generator) < 0.5
    pattern = Pattern.from_mask(mask)
    values = numbers(pattern).requires_grad_()
    coefficients = torch.randn(4, 5, generator=generator)
    (pattern.scatter(values) * coefficients).sum().backward()
    assert torch.equal(values.grad, coefficients[mask])
    weight = torch.randn(4, 5, generator=generator, requires_grad=True)
    (pattern.gather(weight) * 3).sum().backward()
    assert torch.equal(weight.grad, mask * 3.0)


@given(two_masks())
def test_carry_and_move(pair):
    old, new = map(Pattern.from_mask, pair)
    values = numbers(old)
    expected = dense(pair[0], values, 0.5)[pair[1]]
    assert torch.equal(old.moved(values, new, grown=0.5), expected)
    places = old.carry_to(new)
    assert places.dtype == torch.int32
    assert torch.equal(places >= 0, pair[0][pair[1]])
    assert torch.equal(values[places[places >= 0].long()], expected[places >= 0])
    assert torch.equal(carried(values, places, 0.5), expected)


@given(two_masks(), st.data())
def test_exchanged_positions(pair, data):
    old, grown = Pattern.from_mask(pair[0]), (pair[1] & ~pair[0]).reshape(-1).nonzero().squeeze(1)
    dropped = torch.tensor(sorted(data.draw(st.sets(st.integers(0, max(old.nnz - 1, 0)), max_size=old.nnz))))
    dropped = dropped.to(torch.int64)
    expected = pair[0].reshape(-1).clone()
    expected[old.flat[dropped]] = False
    expected[grown] = True
    new = old.exchanged(dropped, grown)
    for found, wanted in zip(new.index, Pattern.from_mask(expected.view(new.shape)).index, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", [(70, 60, 3, 3), (90, 40, 1, 5), (300, 400), (3, 70_000)])
def test_lists_are_the_same_for_any_number_of_threads(shape, generator):
    masks = [torch.rand(shape, generator=generator) < 0.6 for _ in range(2)]
    dropped = torch.arange(0, int(masks[0].sum()), 3)
    grown = (~masks[0]).reshape(-1).nonzero().squeeze(1)[::2].contiguous()

    def everything():
        old, new = map(Pattern.from_mask, masks)
        moved = old.moved(numbers(old), new, grown=0.5)
        changed, listed = old.exchanged(dropped, grown), Pattern.from_flat(shape, old.flat)
        return [*old.index, *changed.index, *listed.index, old.carry_to(new), moved]

    torch.set_num_threads(1)
    alone = everything()
    flat = masks[0].reshape(-1).nonzero().squeeze(1)
    assert torch.equal(Pattern.from_mask(masks[0]).flat, flat)
    after = torch.cat([flat[torch.arange(len(flat)) % 3 > 0], grown]).sort().values
    assert torch.equal(Pattern.from_mask(masks[0]).exchanged(dropped, grown).flat, after)
    columns = flat % math.prod(shape[1:])
    rank = torch.cat([torch.arange(int(row.sum())) for row in masks[0].reshape(shape[0], -1)])
    assert torch.equal(alone[4].long(), rank[columns.argsort(stable=True)])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(), strict=True))


@given(two_masks())
def test_first_kept(pair):
    pattern, flat = Pattern.from_mask(pair[0]), pair[1].reshape(-1).nonzero().squeeze(1)
    shared = [position for position in flat.tolist() if pair[0].reshape(-1)[position]]
    assert pattern.first_kept(flat) == (shared[0] if shared else None)


def test_flat_positions_come_in_any_strides():
    flat = torch.tensor([[1, 5, 8], [0, 0, 0]]).T[:, 0]
    assert Pattern.from_flat((3, 4), flat).flat.tolist() == [1, 5, 8]
    assert Pattern.from_flat((3, 4), flat.to(torch.int32)).flat.tolist() == [1, 5, 8]


def test_carried_by_hand():
    entries = torch.tensor([10.0, 20.0, 30.0])
    places = torch.tensor([2, -1, 0], dtype=torch.int32)
    assert carried(entries, places, -5.0).tolist() == [30.0, -5.0, 10.0]
    assert carried(entries.int(), places, -5).tolist() == [30, -5, 10]
    assert carried(entries.double(), places, -5.0).tolist() == [30.0, -5.0, 10.0]
    assert carried(torch.empty(0, dtype=torch.float64), places, 2.0).dtype == torch.float64
    assert carried(entries[:0], torch.tensor([-1, -1], dtype=torch.int32), 2.0).tolist() == [2.0, 2.0]


@given(masks())
def test_lists_mean_what_their_names_say(mask):
    pattern = Pattern.from_mask(mask)
    taps = math.prod(pattern.shape[2:])
    columns = mask.flatten(1)
    assert pattern.row_start.dtype == pattern.column_start.dtype == torch.int32
    assert pattern.row_start.tolist() == [0, *columns.sum(1).cumsum(0).tolist()]
    assert pattern.column.long().tolist() == columns.nonzero()[:, 1].tolist()
    by_input = columns.view(mask.shape[0], mask.shape[1], taps).permute(1, 2, 0)  # (in, taps, out)
    assert pattern.column_start.tolist() == [0, *by_input.flatten(1).sum(1).cumsum(0).tolist()]
    assert pattern.entry.long().tolist() == by_input.flatten(1).nonzero()[:, 1].tolist()


@given(masks())
def test_rank_finds_the_value(mask):
    """Walking the list by input and looking each value up gives the weight transposed."""
    pattern = Pattern.from_mask(mask)
    taps = math.prod(pattern.shape[2:])
    values, weight = numbers(pattern), torch.zeros(mask.shape)
    flat = weight.view(mask.shape[0], mask.shape[1], taps)
    for j in range(mask.shape[1]):
        for i in range(int(pattern.column_start[j]), int(pattern.column_start[j + 1])):
            tap, row = divmod(int(pattern.entry[i]), mask.shape[0])
            flat[row, j, tap] = values[int(pattern.row_start[row]) + int(pattern.rank[i])]
    assert torch.equal(weight, dense(mask, values))


@given(two_masks())
def test_equality_is_that_of_masks(pair):
    first, second = map(Pattern.from_mask, pair)
    same = torch.equal(*pair)
    assert (first == second) == same
    assert (first.digest == second.digest) == same
    assert first == Pattern.from_mask(pair[0].clone())
    assert hash(first) == hash(Pattern.from_mask(pair[0].clone()))


def test_digest_tells_shapes_apart():
    assert Pattern.from_mask(torch.ones(2, 6, dtype=torch.bool)) != Pattern.from_mask(
        torch.ones(2, 3, 2, 1, dtype=torch.bool)
    )
    assert Pattern.from_mask(torch.ones(2, 2, dtype=torch.bool)) != "something else"
    assert len(Pattern.from_mask(torch.ones(2, 2, dtype=torch.bool)).digest) == 32


@pytest.mark.parametrize(
    ("shape", "kept", "column", "entry", "rank"),
    [
        ((2, 65_536), [0, 65_535, 65_536, 131_071], torch.uint16, torch.uint16, torch.uint16),
        ((2, 65_537), [0, 65_536, 65_537, 131_073], torch.int32, torch.uint16, torch.uint16),
        ((65_536, 2), [0, 131_071], torch.uint16, torch.uint16, torch.uint16),
        ((65_537, 2), [0, 131_073], torch.uint16, torch.int32, torch.uint16),
        ((7_282, 1, 3, 3), [0, 65_537], torch.uint16, torch.int32, torch.uint16),
        ((2, 70_000), range(66_000), torch.int32, torch.uint16, torch.int32),
    ],
)
def test_wide_weights_have_wide_lists(shape, kept, column, entry, rank):
    flat = torch.tensor(list(kept))
    pattern = Pattern.from_flat(shape, flat)
    assert (pattern.column.dtype, pattern.entry.dtype, pattern.rank.dtype) == (column, entry, rank)
    assert torch.equal(pattern.flat, flat)
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[flat] = True
    assert Pattern.from_mask(mask.view(shape)) == pattern
    values = numbers(pattern)
    assert torch.equal(pattern.scatter(values), dense(mask.view(shape), values))
    assert torch.equal(pattern.gather(pattern.scatter(values)), values)
    fewer = Pattern.from_flat(shape, flat[1:])
    assert torch.equal(pattern.moved(values, fewer), values[1:])
    rows = pattern.entry.long() // math.prod(shape[2:])
    by_input = pattern.row_start.long()[rows] + pattern.rank.long()
    inputs = pattern.column.long() // math.prod(shape[2:])
    assert torch.equal(by_input, inputs.argsort(stable=True))


RESNET18 = [(64, 64, 3, 3), (128, 64, 3, 3), (128, 64, 1, 1), (256, 256, 3, 3), (512, 512, 3, 3)]


@pytest.mark.parametrize("shape", RESNET18)
def test_bytes_of_a_kept_weight(shape, generator):
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < 0.1)
    assert pattern.nbytes == sum(t.numel() * t.element_size() for t in pattern.index)
    assert pattern.nbytes == 6 * pattern.nnz + 4 * (shape[0] + 1) + 4 * (shape[1] + 1)
    assert pattern.nbytes <= 8 * pattern.nnz


def test_lists_do_not_change_with_copies(generator):
    pattern = Pattern.from_mask(torch.rand((6, 7), generator=generator) < 0.3)
    file = io.BytesIO()
    torch.save(pattern, file)
    file.seek(0)
    for twin in (copy.deepcopy(pattern), torch.load(file, weights_only=False), pattern.to("cpu")):
        assert twin == pattern
        assert all(torch.equal(a, b) for a, b in zip(twin.index, pattern.index, strict=True))
    assert pattern.to("cpu") is pattern


def test_pickle(generator):
    pattern = Pattern.from_mask(torch.rand((6, 7), generator=generator) < 0.3)
    assert pickle.loads(pickle.dumps(pattern)) == pattern


def test_immutable(generator):
    pattern = Pattern.from_mask(torch.rand((6, 7), generator=generator) < 0.3)
    with pytest.raises(AttributeError):
        pattern.shape = (7, 6)


ONES = torch.ones(3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Pattern.from_mask(torch.ones(3, 4)), r"must be a bool tensor, got torch\.float32"),
        (lambda: Pattern.from_mask(ONES[0]), r"at least two non-empty axes .* got shape \(4,\)"),
        (lambda: Pattern.from_mask(ONES[:0]), r"at least two non-empty axes .* got shape \(0, 4\)"),
        (lambda: Pattern.from_mask(ONES[:1, :1].expand(65_536, 32_768)), "2147483648 positions is too large"),
        (lambda: Pattern.from_flat((3, 4), torch.tensor([2, 1])), r"ascend without repetition inside \[0, 12\)"),
        (lambda: Pattern.from_flat((3, 4), torch.tensor([1, 1])), "ascend without repetition"),
        (lambda: Pattern.from_flat((3, 4), torch.tensor([-1, 1])), "ascend without repetition"),
        (lambda: Pattern.from_flat((3, 4), torch.tensor([1, 12])), "ascend without repetition"),
        (lambda: Pattern.from_flat((3,), torch.tensor([1])), "at least two non-empty axes"),
        (lambda: Pattern.from_mask(ONES).gather(torch.ones(4, 3)), r"\(3, 4\) cannot gather from .* \(4, 3\)"),
        (lambda: Pattern.from_mask(ONES).scatter(torch.ones(11)), r"12 kept positions cannot scatter .* \(11,\)"),
        (lambda: Pattern.from_mask(ONES).scatter(torch.ones(3, 4)), "cannot scatter"),
        (lambda: Pattern.from_mask(ONES).carry_to(Pattern.from_mask(ONES.T)), r"shape \(3, 4\) to .* \(4, 3\)"),
    ],
)
def test_errors(call, words):
    with pytest.raises(PatternError, match=words):
        call()
