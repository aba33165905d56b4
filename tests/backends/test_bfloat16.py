"""bfloat16 is how activations are stored and nothing else: kernels give what they give for the same numbers in float32,
rounded once. Their float32 results are compared with float64 elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from fedsparse import _native
from fedsparse.backends import Case, Geometry, blocked
from fedsparse.backends.activation import Pruning, keep, restore, select
from fedsparse.backends.cpu import CpuBackend, from_blocked, to_blocked
from fedsparse.backends.term import Term
from fedsparse.nn import SparseConv2d
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_backend, product_cases

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HALF = torch.bfloat16
every_isa = pytest.mark.parametrize("isa", _native.instruction_sets())
every_batch = pytest.mark.parametrize("batch", [1, 7, 33])
every_picture = pytest.mark.parametrize("picture", [(1, 1), (3, 5), (24, 24)], ids=str)  # the last: several chunks
ROUNDING = 4e-3  # half a unit in the last of bfloat16's eight digits


def numbers(generator, *shape, mean=0.0):
    """Activations as they are stored; float32 tensors of the same numbers stand for the truth."""
    return (torch.randn(shape, generator=generator) + mean).to(HALF)


def wide(argument):
    return argument.float() if isinstance(argument, torch.Tensor) and argument.dtype == HALF else argument


def equal(got, truth) -> None:
    """Activations are the truth rounded; what is float32 is the truth itself."""
    assert (got is None) == (truth is None)
    if got is not None:
        assert torch.equal(got, truth.to(got.dtype))


def same_as_float32(function, *arguments, **options):
    """Calls `function` on both; returns its results for bfloat16."""
    got = function(*arguments, **options)
    truth = function(*map(wide, arguments), **{name: wide(value) for name, value in options.items()})
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, truth)), strict=True):
        equal(one, other)
    return got


# ---- numbers
@every_isa
@pytest.mark.parametrize(("scale", "shift"), [(1.2345678, 0.0), (1.0, 2.0**-8)], ids=["digits", "ties"])
def test_results_are_rounded_as_torch_rounds(isa, scale, shift, generator):
    """Numbers of every exponent, subnormals, overflow, infinities and NaN; between 1 and 2 the shift makes ties."""
    bits = torch.randint(-(1 << 15), 1 << 15, (7, 3, 20, 20), generator=generator)
    x = bits.to(torch.int16).view(HALF)
    x[0] = torch.rand(x[0].shape, generator=generator).to(HALF) + 1
    x.view(-1)[-6:] = torch.tensor([3.38e38, -3.38e38, 1e-40, float("inf"), float("nan"), -0.0], dtype=HALF)
    vectors = torch.full((3,), scale), torch.full((3,), shift)
    z = blocked.combine(to_blocked(x, isa), *vectors)
    truth = (x.double() * vectors[0][0].double() + shift).float().to(HALF)
    torch.testing.assert_close(from_blocked(z, tuple(x.shape)), truth, rtol=0, atol=0, equal_nan=True)


@every_isa
@every_batch
@pytest.mark.parametrize("shape", [(5,), (3, 4, 7), (2, 40, 31)], ids=str)
def test_the_layout_keeps_every_bit(isa, batch, shape, generator):
    x = numbers(generator, batch, *shape)
    stored = to_blocked(x, isa)
    assert stored.dtype == HALF
    assert torch.equal(stored.float(), to_blocked(x.float(), isa))
    assert torch.equal(from_blocked(stored, tuple(x.shape)), x)


# ---- products
@every_isa
def test_products_agree_with_float64(isa, rng):
    """Awkward sizes, strides, paddings, dilations, groups and densities, empty rows among them."""
    torch.set_num_threads(1)
    for product in product_cases(rng, 90, dtype=HALF):
        check_backend(CpuBackend(isa), product, tolerance=ROUNDING)


def _one_case(shape, size, geometry=None, *, density):
    pattern = Pattern.from_mask(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density)
    return ProductCase(Case(shape, size, pattern.nnz, geometry, HALF), pattern, True, 0)


SAME = Geometry(padding=(1, 1))
LARGE = {
    "blocks of source channels": _one_case((40, 64, 3, 3), (3, 64, 6, 6), SAME, density=0.3),
    "one tile in blocks": _one_case((9, 150, 3, 3), (16, 150, 4, 4), SAME, density=0.9),
    "four classes of one tile": _one_case((6, 4, 3, 3), (16, 4, 8, 8), Geometry((2, 2), (1, 1)), density=0.5),
    "slices of a linear layer": _one_case((30, 50), (300, 50), density=0.2),
    "wide lists": _one_case((3, 70_001), (2, 70_001), density=0.01),
}


@every_isa
@pytest.mark.parametrize("name", LARGE)
def test_larger_products_agree_with_float64(isa, name):
    check_backend(CpuBackend(isa), LARGE[name], tolerance=ROUNDING)


@every_isa
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_products_are_rounded_once(isa, threads, dtype, rng):
    """Through a term as well, whatever the parameters' dtype; their gradients have it."""
    torch.set_num_threads(threads)
    engine = CpuBackend(isa)
    for product in product_cases(rng, 25, dtype=HALF):
        x, values, bias, grad = product.operands()
        values, bias = values.to(dtype), None if bias is None else bias.to(dtype)
        case, channels = product.case, product.case.input[1]
        scale, shift = torch.linspace(0.5, 2, channels), torch.linspace(-1, 1, channels)
        results = []
        for wider in (False, True):
            data, slope = (to_blocked(t.float() if wider else t, isa) for t in (x, grad))
            term = Term(data, scale, shift, relu=True)
            told = _float32(case) if wider else case
            y = engine.forward_blocked(term, values, product.pattern, bias, told)
            results.append((y, *engine.backward_blocked(slope, term, values, product.pattern, True, told)))
        for got, truth in zip(*results, strict=True):
            equal(got, truth)
        assert results[0][2].dtype == dtype


def _float32(case):
    return Case(case.shape, case.input, case.nnz, case.geometry)


# ---- norms, sums, pooling
@every_isa
@every_batch
@every_picture
def test_batch_norm(isa, batch, picture, generator):
    shape = (batch, 5, *picture)
    x, r, grad = (to_blocked(numbers(generator, *shape, mean=m), isa) for m in (3.0, 0.0, 0.0))
    mean, variance = same_as_float32(blocked.moments, x, batch)
    inv_std = (variance + 1e-5).rsqrt()
    scale = inv_std * torch.linspace(0.5, 2, 5)
    shift = torch.linspace(-1, 1, 5) - mean * scale
    z = same_as_float32(blocked.combine, x, scale, shift, r, relu=True)
    same_as_float32(blocked.combine, x, scale, shift)
    same_as_float32(blocked.channel_sums, grad, batch)
    norm = {"mean": mean, "inv_std": inv_std, "center": mean, "want_affine": True}
    arguments = (grad, batch, x, scale, shift)
    for gate in ({}, {"gate": z}, {"gate_by_x": True}):
        found = same_as_float32(blocked.norm_backward, *arguments, **norm, **gate, want_gated=True)
        in_place = blocked.norm_backward(grad.clone(), *arguments[1:], **norm, **gate, in_place=True)
        assert torch.equal(in_place.x, found.x)


@every_isa
@every_batch
@every_picture
@pytest.mark.parametrize("parts", [1, 3])
def test_group_norm(isa, batch, picture, parts, generator):
    x, grad = (to_blocked(numbers(generator, batch, 6, *picture, mean=m), isa) for m in (2.0, 0.0))
    weight, bias = torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6)
    _, mean, inv_std = same_as_float32(blocked.group_norm, x, batch, parts, weight, bias, 1e-5)
    same_as_float32(blocked.group_norm_backward, grad, x, batch, parts, weight, mean, inv_std)


@every_isa
@every_batch
@pytest.mark.parametrize(
    "window",
    [
        blocked.Window((2, 2), (2, 2), (0, 0), (1, 1), (4, 4)),
        blocked.Window((3, 3), (2, 2), (1, 1), (1, 1), (4, 4)),
        blocked.Window((3, 2), (1, 2), (1, 0), (2, 1), (6, 4)),
        blocked.Window((5, 5), (1, 1), (2, 2), (1, 1), (8, 8)),
        blocked.Window((8, 8), (8, 8), (0, 0), (1, 1), (1, 1)),
    ],
    ids=lambda w: "x".join(map(str, w.kernel)),
)
def test_pooling(isa, batch, window, generator):
    """Windows that overlap are summed before anything is rounded."""
    x = to_blocked(numbers(generator, batch, 3, 8, 8), isa)
    y, winner = same_as_float32(blocked.max_pool, x, batch, window)
    grad = to_blocked(numbers(generator, *from_blocked(y, (batch, 3, *window.output)).shape), isa)
    same_as_float32(blocked.max_pool_backward, grad, winner, batch, window, (8, 8))
    for divisor in (0, window.kernel[0] * window.kernel[1]):
        same_as_float32(blocked.average_pool, x, batch, window, divisor)
        same_as_float32(blocked.average_pool_backward, grad, batch, window, (8, 8), divisor)


# ---- pruned activations
@pytest.mark.parametrize("rule", ["tile", "global"])
def test_pruned_layers_keep_bfloat16(rule, generator):
    x = numbers(generator, 7, 3, 9, 9)
    pruning = Pruning(0.3, rule)
    kept = keep(x, pruning)
    assert kept.values.dtype == HALF
    found = restore(kept, tuple(x.shape), HALF)
    assert torch.equal(found, restore(keep(x.float(), pruning), tuple(x.shape), torch.float32).to(HALF))
    assert torch.equal(found[found != 0], x[found != 0])


@every_isa
def test_cuts_of_saved_bfloat16(isa, rng):
    """What a product reads of a pruned input is the same in either storage."""
    torch.set_num_threads(1)
    engine = CpuBackend(isa)
    for product in product_cases(rng, 20, dtype=HALF):
        x, values, _, grad = product.operands()
        results = []
        for wider in (False, True):
            data, slope = (to_blocked(t.float() if wider else t, isa) for t in (x, grad))
            term = Term(data, cuts=select(Term(data), len(x), Pruning(0.4)))
            told = _float32(product.case) if wider else product.case
            results.append(engine.backward_blocked(slope, term, values.float(), product.pattern, True, told))
        for got, truth in zip(*results, strict=True):
            equal(got, truth)


# ---- layers
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_by_itself_runs_on_the_cpu_kernels(training, generator):
    dense = torch.nn.Conv2d(6, 9, 3, padding=1)
    kept = torch.rand(dense.weight.shape, generator=generator) < 0.2
    layer = SparseConv2d.from_dense(dense, kept).to(HALF).train(training)
    layer.set_backend("cpu")  # no way out
    x = numbers(generator, 7, 6, 8, 8).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert [t.dtype for t in (y, x.grad, layer.values.grad, layer.bias.grad)] == [HALF] * 4
    truth = F.conv2d(x.detach().double(), layer.weight.double(), layer.bias.detach().double(), padding=1)
    assert float((y.detach().double() - truth).norm() / truth.norm()) < ROUNDING
