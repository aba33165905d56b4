"""Pruned and packed activations, by the kernels of every instruction set that runs here and in plain PyTorch."""

import itertools

import pytest
import torch

from fedsparse import _native
from fedsparse.backends import Case, Geometry
from fedsparse.backends.activation import (
    Pruning,
    keep,
    nonzero_bits,
    pack,
    plain_pack,
    plain_unpack,
    restore,
    select,
    unpack,
)
from fedsparse.backends.blocked import combine, norm_backward
from fedsparse.backends.cpu import CpuBackend, from_blocked, to_blocked
from fedsparse.backends.term import Cuts, Term
from fedsparse.errors import ConfigError
from fedsparse.pattern import Pattern

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SETS = list(_native.instruction_sets())
SHAPES = [(1, 3, 5, 5), (7, 2, 8, 8), (33, 17, 3, 5), (16, 5, 24, 24), (33, 40)]
RULES = ("tile", "global")
KEEPS = (0.01, 0.3, 0.5, 0.99, 1.0)

every_set = pytest.mark.parametrize("isa", SETS)


def sample(kind, shape, generator):
    x = torch.randn(shape, generator=generator)
    if kind == "tied":
        x = (2 * x).round() / 2
    if kind == "relu":
        x = x.clamp(min=0)
    return x


def largest(x, rule, share):
    """The elements that stay, by a stable sort in float64; zeros are no loss."""
    tiles = x.double().reshape((1, -1) if rule == "global" else (len(x), -1))
    order = torch.sort(-tiles.abs(), dim=1, stable=True).indices[:, : round(share * tiles.shape[1])]
    return (torch.zeros_like(tiles, dtype=torch.bool).scatter_(1, order, True) & (tiles != 0)).view(x.shape)


def fill_spare_lanes(blocked, batch, number):
    images = blocked.movedim(-1, 1).reshape(-1, *blocked.shape[1:-1])
    images[batch:] = number
    return images.unflatten(0, (blocked.shape[0], -1)).movedim(1, -1).contiguous()


def pruned(x, isa, pruning, **term):
    """Kept elements of what a term makes of x, expanded again, and their packed form."""
    blocked = fill_spare_lanes(to_blocked(x, isa), len(x), 1e6)
    seen = Term(blocked, **term)
    packed = pack(seen._replace(cuts=select(seen, len(x), pruning)), len(x), pruning.dtype)
    return from_blocked(unpack(packed, tuple(blocked.shape)), tuple(x.shape)), packed


@every_set
@pytest.mark.parametrize("kind", ["normal", "tied", "relu"])
@pytest.mark.parametrize(("shape", "rule"), list(itertools.product(SHAPES, RULES)), ids=str)
def test_keeps_what_a_stable_sort_keeps(isa, kind, shape, rule, generator):
    x = sample(kind, shape, generator)
    for share in KEEPS:
        truth = torch.where(largest(x, rule, share), x, 0.0)
        found, packed = pruned(x, isa, Pruning(share, rule))
        assert torch.equal(found, truth), share
        lanes = _native.instruction_sets()[isa]
        assert packed.values.numel() == int((truth != 0).sum()) + lanes
        assert packed.bits.numel() == -(-to_blocked(x, isa).numel() // 512) * 64
        plain = plain_pack(x, Pruning(share, rule))
        assert plain.values.numel() == int((truth != 0).sum())
        assert plain.bits.numel() == -(-x.numel() // 8)
        assert torch.equal(plain_unpack(plain, shape, x.dtype), truth)


@every_set
@pytest.mark.parametrize("rule", RULES)
def test_reads_through_terms_and_bfloat16(isa, rule, generator):
    x = sample("normal", (7, 6, 4, 5), generator)
    scale, shift = torch.randn((2, 6), generator=generator)
    for data in (x, x.bfloat16()):
        seen = combine(to_blocked(data.float(), isa), scale, shift, relu=True)
        truth = from_blocked(seen, tuple(x.shape))
        truth = torch.where(largest(truth, rule, 0.3), truth, 0.0)
        term = Term(to_blocked(data.float(), isa).to(data.dtype), scale, shift, relu=True)
        packed = pack(term._replace(cuts=select(term, 7, Pruning(0.3, rule))), 7)
        assert torch.equal(from_blocked(unpack(packed, tuple(seen.shape)), tuple(x.shape)), truth)


@every_set
@pytest.mark.parametrize("rule", RULES)
def test_threads_change_nothing(isa, rule, generator):
    x = to_blocked(sample("tied", (33, 7, 24, 24), generator), isa)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        cuts = select(Term(x), 33, Pruning(0.2, rule))
        packed = pack(Term(x, cuts=cuts), 33)
        results.append(
            (cuts.key, cuts.last, packed.bits, packed.starts, packed.values[: -x.shape[-1]], unpack(packed, x.shape))
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_set
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("size", [(33, 37), (7, 5, 9, 7), (40, 20, 24, 24)], ids=str)
def test_one_walk_and_two_give_the_same_bits(isa, size, dtype, generator):
    x = sample("tied", size, generator)
    scale, shift = torch.randn((2, size[1]), generator=generator)
    for seen in (Term(to_blocked(x, isa)), Term(to_blocked(x, isa), scale, shift)):
        cuts = select(seen, len(x), Pruning(0.3))
        found = []
        for threads, kept in itertools.product((1, 3), (cuts.kept, cuts.kept - 1, None)):
            torch.set_num_threads(threads)
            packed = pack(seen._replace(cuts=cuts._replace(kept=kept)), len(x), dtype)
            found.append((packed.bits, packed.starts, packed.values[: cuts.kept].float()))
            assert packed.values.numel() == cuts.kept + seen.data.shape[-1]
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@every_set
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("zeros", [0.2, 0.8])
def test_selection_counts_what_stays(isa, rule, zeros, generator):
    x = torch.randn((33, 6, 7, 5), generator=generator)
    x[torch.rand(x.shape, generator=generator) < zeros] = 0.0
    x[5] = 0.0
    for share in KEEPS[:-1]:
        cuts = select(Term(fill_spare_lanes(to_blocked(x, isa), 33, 1e6)), 33, Pruning(share, rule))
        assert cuts.kept == int(largest(x, rule, share).sum())


# What is packed without cuts is guessed from a few channels of the first group; the guess must not show.
@every_set
@pytest.mark.parametrize("dense_first", [True, False])
def test_wrong_guesses_cost_no_memory(isa, dense_first, generator):
    x = torch.randn((40, 64, 6, 6), generator=generator)
    zeros = slice(4, None) if dense_first else slice(0, 4)
    x[:, zeros] = 0.0
    found, packed = pruned(x, isa, Pruning(1.0))
    assert torch.equal(found, x)
    assert packed.values.untyped_storage().nbytes() == 4 * (x.count_nonzero() + _native.instruction_sets()[isa])


@every_set
def test_rare_zeros_are_left_out(isa, generator):
    x = torch.randn((40, 64, 6, 6), generator=generator)
    x[torch.rand(x.shape, generator=generator) < 0.01] = 0.0
    for dtype, truth in ((None, x), (torch.bfloat16, x.bfloat16().float())):
        found, packed = pruned(x, isa, Pruning(1.0, dtype=dtype))
        assert torch.equal(found, truth)
        assert packed.values.numel() == int((x != 0).sum()) + _native.instruction_sets()[isa]


@every_set
def test_bfloat16_values_are_rounded_to_nearest_even(isa, generator):
    x = torch.randn((7, 3, 9, 9), generator=generator) * torch.logspace(-30, 30, 81).view(9, 9)
    x[0, 0, 0, :4] = torch.tensor([float("inf"), float("nan"), 1.00390625, 1.01171875])  # the last two are halfway
    found, packed = pruned(x, isa, Pruning(1.0, dtype=torch.bfloat16))
    assert packed.values.dtype == torch.bfloat16
    torch.testing.assert_close(found, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
    finite = x.isfinite() & (x.abs() > 1e-35)
    assert ((found - x).abs()[finite] <= x.abs()[finite] * 2**-8).all()
    plain = plain_pack(x, Pruning(1.0, dtype=torch.bfloat16))
    torch.testing.assert_close(plain_unpack(plain, x.shape, x.dtype), found, rtol=0, atol=0, equal_nan=True)


@every_set
def test_zeros_take_no_space_and_nan_comes_first(isa):
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 0] = torch.tensor([-0.0, 1e-45, -1e-45, 0.0])
    x[1, 0, 3] = torch.tensor([float("inf"), 5.0, float("nan"), -float("inf")])
    found, packed = pruned(x, isa, Pruning(1.0))
    assert packed.values.numel() - _native.instruction_sets()[isa] == 6
    torch.testing.assert_close(found, x, rtol=0, atol=0, equal_nan=True)
    found, _ = pruned(x, isa, Pruning(0.125))
    assert found[0].count_nonzero() == 2
    assert found[1, 0, 3].isnan().tolist() == [False, False, True, False]
    assert found[1, 0, 3, 0] == float("inf")
    assert found[1, 0, 3, 3] == 0
    none, packed = pruned(x, isa, Pruning(0.01))
    assert not none.any()
    assert packed.values.numel() == _native.instruction_sets()[isa]


@every_set
def test_gates_of_one_bit_equal_gates_of_numbers(isa, generator):
    z, grad = torch.randn((2, 7, 3, 5, 3), generator=generator)
    z, grad = to_blocked(z.clamp(min=0), isa), to_blocked(grad, isa)
    bits = nonzero_bits(Term(fill_spare_lanes(z, 7, 1.0)), 7)
    truth = norm_backward(grad, 7, gate=z, want_gated=True).gated
    assert torch.equal(norm_backward(grad, 7, gate_bits=bits, want_gated=True).gated, truth)


@every_set
def test_norms_read_their_input_as_bfloat16(isa, generator):
    x, grad = (to_blocked(t, isa) for t in torch.randn((2, 7, 3, 5, 3), generator=generator) * 2 + 1)
    grad = fill_spare_lanes(grad, 7, 0.0)
    mean, inv_std, scale, shift = torch.rand((4, 3), generator=generator) + 0.5
    x_hat = combine(x, inv_std, -mean * inv_std).bfloat16()
    held = combine(x_hat.float(), inv_std.reciprocal(), mean)
    wanted = {"gate_by_x": True, "mean": mean, "inv_std": inv_std, "want_gated": True, "want_affine": True}
    found = norm_backward(grad, 7, x_hat, scale, shift, **wanted)
    truth = norm_backward(grad, 7, held, scale, shift, **wanted)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# ---- the weight gradient reads pruned inputs without expanding them
GEOMETRIES = {
    "convolution": ((9, 6, 3, 3), (33, 6, 9, 7), Geometry(padding=(1, 1))),
    "strided": ((9, 6, 3, 3), (7, 6, 9, 11), Geometry(stride=(2, 2), padding=(1, 1))),
    "pointwise, strided": ((9, 6, 1, 1), (16, 6, 8, 8), Geometry(stride=(2, 2))),
    "groups": ((8, 2, 3, 3), (5, 8, 6, 6), Geometry(groups=4, dilation=(2, 1), padding=(2, 1))),
    "many channels": ((96, 300, 3, 3), (17, 300, 5, 6), Geometry(padding=(1, 1))),
    "linear": ((30, 50), (33, 50), None),
    "linear, large batch": ((30, 50), (200, 50), None),
}


@every_set
@pytest.mark.parametrize("name", GEOMETRIES)
def test_weight_gradients_of_pruned_inputs(isa, name, generator):
    shape, size, geometry = GEOMETRIES[name]
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < 0.2)
    case = Case(shape, size, pattern.nnz, geometry)
    engine, batch = CpuBackend(isa), size[0]
    values = torch.randn(pattern.nnz, generator=generator)
    x = sample("tied", size, generator)
    scale, shift = torch.randn((2, size[1]), generator=generator)
    grad = to_blocked(torch.randn(case.output, generator=generator), isa)
    data = fill_spare_lanes(to_blocked(x, isa), batch, 1e6)
    term = Term(data, scale, shift, relu=True)
    cuts = select(term, batch, Pruning(0.3))
    packed = pack(term._replace(cuts=cuts), batch)
    dense = Term(unpack(packed, tuple(data.shape)))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        truth = engine.backward_blocked(grad, dense, values, pattern, True, case)
        for form in (packed, term._replace(cuts=cuts)):
            found = engine.backward_blocked(grad, form, values, pattern, True, case)
            assert torch.equal(found.values, truth.values)
            assert torch.equal(found.x, truth.x)
        alone = engine.backward_blocked(grad, packed, values, pattern, False, case)
        torch.testing.assert_close(alone.values, truth.values, rtol=1e-5, atol=1e-4)
    half = term._replace(data=data.bfloat16())
    wide = Term(combine(half.data.float(), scale, shift, relu=True))
    found = engine.backward_blocked(grad, half, values, pattern, True, case)
    assert torch.equal(found.values, engine.backward_blocked(grad, wide, values, pattern, True, case).values)


# ---- ordinary tensors
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_ordinary_tensors_of_any_dtype(dtype, rule, generator):
    x = sample("normal", (5, 3, 6, 7), generator).to(dtype)
    found = restore(keep(x.transpose(2, 3), Pruning(0.4, rule)), (5, 3, 7, 6), dtype)
    x = x.transpose(2, 3).contiguous()
    assert torch.equal(found, torch.where(largest(x, rule, 0.4), x, 0.0))
    empty = torch.empty(0, 3, 6, 7, dtype=dtype)
    assert torch.equal(restore(keep(empty, Pruning(0.4, rule)), tuple(empty.shape), dtype), empty)


def test_halves_are_rounded_to_even():
    assert [Pruning(0.5).count(n) for n in (3, 5, 6)] == [2, 2, 3]


def test_the_example_of_the_paper_s_specification():
    x = torch.tensor([[3.0, -1.0, 0.5, -4.0]])
    assert restore(keep(x, Pruning(0.5, "global")), (1, 4), x.dtype).tolist() == [[3.0, 0.0, 0.0, -4.0]]


@pytest.mark.parametrize("number", [0, -0.1, 1.5, float("nan"), float("inf"), True, "0.3", None])
def test_shares_that_are_refused(number):
    with pytest.raises(ConfigError, match=r"in \(0, 1\]; got"):
        Pruning(number)


def test_other_settings_that_are_refused():
    with pytest.raises(ConfigError, match=r"unknown rule 'row'.*tile, global"):
        Pruning(0.3, "row")
    with pytest.raises(ConfigError, match=r"bfloat16; got torch\.float16"):
        Pruning(0.3, dtype=torch.float16)


def test_images_too_large_for_their_positions_are_refused():
    huge = torch.empty((), dtype=torch.float32).expand(1, 1 << 16, 1 << 8, 1 << 8, 4)
    with pytest.raises(ValueError, match="4294967296 elements an image"):
        select(Term(huge), 1, Pruning(0.3))
    assert Cuts._fields == ("key", "last", "kept")
