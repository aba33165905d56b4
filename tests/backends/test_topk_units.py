"""The streaming top-k of units, against a stable sort of the units of the whole gradient."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedsparse import _native
from fedsparse.backends import Case, Geometry
from fedsparse.backends.cpu import CpuBackend, Term, to_blocked
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import Element, parse
from fedsparse.testing import Operands, ProductCase, product_cases, relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SETS = pytest.mark.parametrize("isa", _native.instruction_sets())
UNITS = ("vector:2", "vector:3", "vector:16", "block:2", "block:5", "channel")


def structured(product: ProductCase, granularity: str, density: float = 0.3) -> ProductCase:
    """The product with a mask of whole units."""
    unit, shape = parse(granularity), product.case.shape
    tiling = unit.tiling(shape)
    kept = torch.rand(tiling.count, generator=torch.Generator().manual_seed(product.seed)) < density
    pattern = Pattern.from_mask(tiling.spread(kept).view(shape), unit)
    return replace(product, case=replace(product.case, nnz=pattern.nnz), pattern=pattern)


def convolution(shape: tuple[int, ...], size: tuple[int, ...]) -> ProductCase:
    pattern = Pattern.from_mask(torch.ones(shape, dtype=torch.bool))
    return ProductCase(Case(shape, size, pattern.nnz, Geometry(padding=(1, 1))), pattern, False, 5)


def found(isa: str, product: ProductCase, operands: Operands, k: int) -> tuple[Tensor, Tensor]:
    tile = product.pattern.granularity.tiling(product.case.shape).tile
    return CpuBackend(isa).topk_pruned_units(operands.grad, operands.x, product.pattern, k, tile, product.case)


def whole_gradient(isa: str, product: ProductCase, operands: Operands) -> Tensor:
    """By the same kernel: every position in turn of a mask that keeps nothing."""
    empty = Pattern.from_mask(torch.zeros(product.case.shape, dtype=torch.bool))
    case = replace(product.case, nnz=0)
    positions, gradients = CpuBackend(isa).topk_pruned(operands.grad, operands.x, empty, empty.size, case)
    return gradients[positions.argsort()]


def ranked(gradient: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """All pruned positions, unit after unit, and how many there are up to the end of each unit."""
    tiling = pattern.granularity.tiling(pattern.shape)
    pruned = torch.ones(tiling.count, dtype=torch.bool)
    pruned[tiling.of(pattern.flat)] = False
    numbers = pruned.nonzero().squeeze(1)
    scores = (tiling.sums(gradient.double().square()) / tiling.sizes())[numbers]
    best = numbers[torch.sort(scores, descending=True, stable=True).indices]
    rank = torch.full((tiling.count,), tiling.count).index_copy_(0, best, torch.arange(len(best)))
    of_positions = tiling.spread(rank)
    order = of_positions.sort(stable=True).indices[: int((of_positions < tiling.count).sum())]
    return order, tiling.sizes(best).cumsum(0)


def check(isa: str, product: ProductCase, operands: Operands, gradient: Tensor, ks: list[int]) -> None:
    order, ends = ranked(gradient, product.pattern)
    for k in ks:
        positions, gradients = found(isa, product, operands, k)
        fitting = ends[ends <= k]
        wanted = order[: int(fitting[-1])] if len(fitting) else order[:0]
        assert torch.equal(positions, wanted), f"{product.pattern.granularity} of {product}, k = {k}"
        assert torch.equal(gradients.nan_to_num(7), gradient[wanted].nan_to_num(7)), product


@SETS
@pytest.mark.parametrize("integers", [False, True], ids=["normal", "ties"])
@pytest.mark.parametrize("granularity", UNITS)
def test_equals_a_stable_sort_of_units(isa, granularity, integers, rng):
    for number, product in enumerate(product_cases(rng, 14)):
        torch.set_num_threads(1 + number % 2)
        product = structured(product, granularity)
        operands = product.operands(integers=integers)
        pruned = product.pattern.size - product.pattern.nnz
        check(isa, product, operands, whole_gradient(isa, product, operands), [0, min(1, pruned), pruned // 3, pruned])


@SETS
@pytest.mark.parametrize("granularity", ["vector:2", "vector:16", "block:2", "block:16", "channel"])
def test_over_many_chunks(isa, granularity):
    """Three chunks with ragged edges; the worst are dropped many times where k is small. Dead channels tie at zero."""
    product = structured(convolution((150, 123, 3, 3), (9, 123, 3, 3)), granularity, 0.1)
    operands = product.operands(integers=True)
    operands.x[:, 3::4] = 0
    operands.grad[:, :40] = 0
    ks = [1, 300, 3000, 60_000, product.pattern.size - product.pattern.nnz]
    check(isa, product, operands, whole_gradient(isa, product, operands), ks)
    operands = product.operands()
    check(isa, product, operands, whole_gradient(isa, product, operands), ks)


@SETS
@pytest.mark.parametrize("granularity", ["vector:4", "block:4", "channel"])
def test_nan_comes_first_in_order(isa, granularity):
    product = structured(convolution((40, 30, 3, 3), (6, 30, 5, 5)), granularity)
    operands = product.operands()
    operands.grad[:, 30] = torch.nan
    operands.grad[:, 7:9] = torch.inf
    gradient = whole_gradient(isa, product, operands)
    assert gradient.isnan().any()
    assert not gradient.isnan().all()
    check(isa, product, operands, gradient, [500, 5000])


@SETS
@pytest.mark.parametrize("granularity", ["vector:16", "block:16", "channel"])
def test_agrees_with_float64(isa, granularity):
    """Units may change places with those whose score differs by less than the rounding of either."""
    product = structured(convolution((70, 40, 3, 3), (33, 40, 16, 16)), granularity)
    operands = product.operands()
    k = (product.pattern.size - product.pattern.nnz) // 2
    positions, gradients = found(isa, product, operands, k)
    truth = product.truth(operands).grad_weight.view(-1)
    assert relative_error(gradients, truth[positions]) < 2e-6
    order, ends = ranked(truth, product.pattern)
    best = order[: int(ends[ends <= k][-1])]
    assert abs(float(truth[positions].norm() / truth[best].norm()) - 1) < 1e-5


@SETS
def test_reads_bfloat16_and_lines(isa, generator):
    """The gradient of a row may be followed by a line, and activations may be stored as bfloat16."""
    product = structured(convolution((24, 20, 3, 3), (19, 20, 6, 7)), "block:8")
    tiling = product.pattern.granularity.tiling(product.case.shape)
    half = replace(product, case=replace(product.case, dtype=torch.bfloat16))
    x, _, _, grad = half.operands()
    slope, offset = (torch.randn(24, generator=generator) for _ in range(2))
    wide = Operands(x.float(), product.operands().values, None, grad.float())
    gradient = whole_gradient(isa, product, wide).view(24, -1) * slope[:, None] + offset[:, None]
    order, ends = ranked(gradient.view(-1), product.pattern)
    k = int(ends[3]) + 1
    term, blocked_grad = Term(to_blocked(x, isa)), to_blocked(grad, isa)
    positions, gradients = CpuBackend(isa).topk_pruned_blocked(
        blocked_grad, term, half.pattern, k, half.case, (slope, offset), tiling.tile
    )
    assert torch.equal(positions, order[: int(ends[3])])
    assert torch.allclose(gradients, gradient.view(-1)[positions], rtol=1e-5, atol=1e-5)


@SETS
def test_same_bits_on_any_number_of_threads(isa):
    product = structured(convolution((80, 40, 3, 3), (20, 40, 9, 9)), "block:16")
    operands, results = product.operands(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(found(isa, product, operands, 5000))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@SETS
@pytest.mark.parametrize("granularity", ["vector:16", "block:16"])
def test_memory_does_not_grow_with_the_weight(isa, granularity):
    """Neither with the rows nor, beyond a chunk, with anything else but k."""
    torch.set_num_threads(1)
    native = _native.extension()

    def bytes_for(rows: int, k: int) -> int:
        product = structured(convolution((rows, 128, 3, 3), (16, 128, 4, 4)), granularity)
        tile = product.pattern.granularity.tiling(product.case.shape).tile
        sizes = (*product.case.input, *product.case.shape[:1], 3, 3, 1, 1, 1, 1, 1, 1, 1)
        problem = native.conv2d_problem(isa, product.pattern.view, sizes, 1, False)
        return native.topk_pruned_units(problem, 0, (0, 0, 0), False, (0, 0), tile, k, 0, 0, 0)

    assert bytes_for(112, 100) == bytes_for(400, 100)
    assert bytes_for(800, 50_000) - bytes_for(800, 10_000) <= 2 * 4 * 40_000 * 1.75


def test_of_single_positions_it_is_the_search_of_elements(generator):
    product = convolution((8, 6, 3, 3), (16, 6, 5, 5))
    pattern = Pattern.from_mask(torch.rand(8, 6, 3, 3, generator=generator) < 0.5)
    product = replace(product, case=replace(product.case, nnz=pattern.nnz), pattern=pattern)
    operands, backend = product.operands(), CpuBackend()
    tile = Element().tiling(product.case.shape).tile
    alone = backend.topk_pruned(operands.grad, operands.x, pattern, 50, product.case)
    units = backend.topk_pruned_units(operands.grad, operands.x, pattern, 50, tile, product.case)
    assert all(torch.equal(a, b) for a, b in zip(alone, units, strict=True))
