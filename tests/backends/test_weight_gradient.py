"""The dense weight gradient and the streaming top-k on blocked activations, against dense float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address
from fedsparse.backends import Case, Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import Operands, ProductCase, product_cases, relative_error

pytestmark = pytest.mark.usefixtures("poisoned_memory")

native = _native.extension()
SETS = pytest.mark.parametrize("isa", _native.instruction_sets())


def aligned(tensor: Tensor) -> Tensor:
    """A copy whose first number is 64-byte aligned."""
    room = torch.empty(tensor.numel() + 16)
    skip = -room.data_ptr() % 64 // 4
    return room[skip : skip + tensor.numel()].view(tensor.shape).copy_(tensor)


def blocked(tensor: Tensor, isa: str, empty: float) -> Tensor:
    """(batch, channels, ...) -> (groups, channels, height, width, lanes); lanes without an image hold `empty`."""
    lanes = _native.instruction_sets()[isa]
    if tensor.dim() == 2:
        tensor = tensor[:, :, None, None]
    groups = -(-len(tensor) // lanes)
    full = torch.full((groups * lanes, *tensor.shape[1:]), empty, dtype=tensor.dtype)
    full[: len(tensor)] = tensor
    return aligned(full.view(groups, lanes, *tensor.shape[1:]).permute(0, 2, 3, 4, 1))


def sizes(case: Case) -> tuple[int, ...]:
    """The fields of ConvShape."""
    g = case.geometry
    if g is None:
        return (*case.input, 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1)
    return (*case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups)


def dense(isa, case, grad, x, rows=None, scale=None, shift=None, relu=False) -> Tensor:
    """Gradient of the weight rows in `rows`, a range, by the kernel."""
    first, last = rows or (0, case.shape[0])
    grad, x = blocked(grad, isa, 0.0), blocked(x, isa, 3.0)
    out = torch.empty(last - first, *case.shape[1:])
    term = address(x), address(scale), address(shift)
    arguments = isa, sizes(case), grad.dtype == torch.bfloat16, address(grad), term, relu, first, last, address(out)
    threads = torch.get_num_threads()
    workspace = torch.empty(native.weight_gradient_rows(*arguments, 0, threads), dtype=torch.uint8)
    native.weight_gradient_rows(*arguments, address(workspace), threads)
    return out


def check(isa: str, product: ProductCase, **arguments) -> None:
    """Compares with float64, and where terms cancel with a share of their magnitudes."""
    x, values, _, grad = product.operands()
    read = x.double()
    for name, combine in (("scale", torch.mul), ("shift", torch.add)):
        if name in arguments:
            read = combine(read, arguments[name].double().view(-1, *[1] * (x.dim() - 2)))
    if arguments.get("relu"):
        read = read.relu()
    wanted = product.truth(Operands(read, values, None, grad)).grad_weight
    terms = product.truth(Operands(read.abs(), values, None, grad.abs())).grad_weight
    error = relative_error(dense(isa, product.case, grad, x, **arguments), wanted, floor=0.05 * float(terms.norm()))
    assert error < 2e-6, f"off by {error:.1e} for {product}"


def topk(isa, product: ProductCase, grad, x, k, scale=None, shift=None, relu=False) -> tuple[Tensor, Tensor]:
    """Positions and gradients by the streaming kernel."""
    problem = problem_of(isa, product)
    grad, x = blocked(grad, isa, 0.0), blocked(x, isa, 3.0)
    positions, gradients = torch.empty(k, dtype=torch.int64), torch.empty(k)
    term = address(x), address(scale), address(shift)
    arguments = problem, address(grad), term, relu, (0, 0), k, address(positions), address(gradients)
    workspace = torch.empty(native.topk_pruned(*arguments, 0), dtype=torch.uint8)
    native.topk_pruned(*arguments, address(workspace))
    return positions, gradients


def problem_of(isa: str, product: ProductCase) -> object:
    case, threads = product.case, torch.get_num_threads()
    if case.geometry is None:
        return native.linear_problem(isa, product.pattern.view, case.input[0], threads, False)
    return native.conv2d_problem(isa, product.pattern.view, sizes(case), threads, False)


def best_of(gradients: Tensor, pattern: Pattern, k: int) -> tuple[Tensor, Tensor]:
    """What a stable sort of all pruned gradients by magnitude, NaN first, puts first."""
    pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)
    candidates = gradients.view(-1)[pruned]
    order = torch.sort(candidates.abs(), descending=True, stable=True).indices[:k]
    return pruned[order], candidates[order]


def kept_at(density: float, shape: tuple[int, ...], size: tuple[int, ...], **moves) -> ProductCase:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(7)) < density
    pattern = Pattern.from_mask(mask)
    geometry = Geometry(**{"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **moves})
    return ProductCase(Case(shape, size, pattern.nnz, geometry, torch.float32), pattern, False, 0)


def everything_kept(shape: tuple[int, ...], size: tuple[int, ...], **moves) -> ProductCase:
    return kept_at(2.0, shape, size, **moves)


@SETS
def test_agrees_with_float64(isa, rng):
    for number, product in enumerate(product_cases(rng, 200)):
        torch.set_num_threads(1 + number % 2)
        check(isa, product)


@SETS
def test_reads_bfloat16(isa, rng):
    torch.set_num_threads(1)
    for product in product_cases(rng, 100, dtype=torch.bfloat16):
        check(isa, product)


@SETS
@pytest.mark.parametrize(
    "product",
    [
        everything_kept((64, 64, 3, 3), (20, 64, 32, 32)),  # bands, several tiles, two panels
        everything_kept((70, 40, 3, 3), (33, 40, 16, 16)),
        everything_kept((30, 48, 3, 3), (17, 48, 9, 7), stride=(2, 2)),
        everything_kept((20, 48, 3, 3), (5, 48, 11, 13), stride=(3, 3)),
        everything_kept((20, 40, 3, 2), (16, 40, 9, 8), padding=(2, 1), dilation=(2, 3)),
        everything_kept((130, 24, 1, 1), (40, 48, 8, 8), stride=(2, 2), padding=(0, 0), groups=2),
        everything_kept((8, 40, 3, 3), (4, 40, 1, 1), padding=(4, 4), stride=(3, 3)),  # outputs that see no pixel
        everything_kept((12, 3, 7, 7), (18, 3, 40, 40), stride=(2, 2), padding=(3, 3)),
        everything_kept((300, 20, 3, 3), (3, 20, 4, 4)),  # more rows than a task holds
        everything_kept((9, 1, 3, 3), (19, 9, 10, 10), groups=9),
    ],
    ids=lambda product: "x".join(map(str, product.case.shape)),
)
def test_agrees_with_float64_beyond_one_tile(isa, product):
    torch.set_num_threads(2)
    check(isa, product)


@SETS
@pytest.mark.parametrize("names", [("scale",), ("shift",), ("scale", "shift"), ()], ids="-".join)
@pytest.mark.parametrize("relu", [False, True])
def test_reads_x_as_a_term(isa, names, relu, rng, generator):
    """Padding is zero after the term, not before it: the shift must not reach it."""
    for product in product_cases(rng, 20):
        check(
            isa, product, relu=relu, **{name: torch.randn(product.case.input[1], generator=generator) for name in names}
        )


@SETS
def test_relu_keeps_nan(isa):
    product = everything_kept((2, 2, 1, 1), (3, 2, 1, 1), padding=(0, 0))
    got = dense(isa, product.case, torch.ones(3, 2, 1, 1), torch.full((3, 2, 1, 1), torch.nan), relu=True)
    assert got.isnan().all()


@SETS
def test_same_bits_for_any_range_and_threads(isa, rng):
    for product in (*product_cases(rng, 40), everything_kept((80, 40, 3, 3), (20, 40, 9, 9))):
        case = product.case
        x, _, _, grad = product.operands()
        torch.set_num_threads(1)
        whole = dense(isa, case, grad, x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, last = np.sort(rng.choice(case.shape[0] + 1, 2, replace=False)).tolist()
            assert torch.equal(dense(isa, case, grad, x), whole), product
            assert torch.equal(dense(isa, case, grad, x, rows=(first, last)), whole[first:last]), product


@SETS
@pytest.mark.parametrize("integers", [False, True], ids=["normal", "ties"])
def test_topk_is_a_stable_sort_of_the_gradient(isa, integers, rng):
    for number, product in enumerate(product_cases(rng, 120)):
        torch.set_num_threads(1 + number % 2)
        x, _, _, grad = product.operands(integers=integers)
        gradients = dense(isa, product.case, grad, x)
        pruned = product.pattern.size - product.pattern.nnz
        for k in {0, min(1, pruned), pruned // 3, pruned}:
            got, wanted = topk(isa, product, grad, x, k), best_of(gradients, product.pattern, k)
            assert torch.equal(got[0], wanted[0]), product
            assert torch.equal(got[1], wanted[1]), product


@SETS
@pytest.mark.parametrize("k", [1, 70, 3000, 60_000])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
def test_topk_of_many_chunks(isa, density, k):
    """Three chunks, whose whole numbers tie everywhere, with dead channels that tie at zero."""
    product = kept_at(density, (150, 128, 3, 3), (9, 128, 3, 3))
    k = min(k, product.pattern.size - product.pattern.nnz)
    x, _, _, grad = product.operands(integers=True)
    x[:, 3::4] = 0
    grad[:, :40] = 0
    got = topk(isa, product, grad, x, k)
    wanted = best_of(dense(isa, product.case, grad, x), product.pattern, k)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@SETS
@pytest.mark.parametrize("grad_is_zero", [False, True])
def test_topk_takes_nan_first_and_zeros_in_order(isa, grad_is_zero):
    product = kept_at(0.2, (40, 30, 3, 3), (6, 30, 5, 5))
    x, _, _, grad = product.operands()
    if grad_is_zero:
        grad.zero_()
    grad[:, 30] = torch.nan
    got = topk(isa, product, grad, x, 500)
    wanted = best_of(dense(isa, product.case, grad, x), product.pattern, 500)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1].isnan(), wanted[1].isnan())
    assert got[1].isnan().any()


@SETS
def test_topk_reads_x_as_a_term_and_agrees_with_float64(isa, rng, generator):
    for product in product_cases(rng, 30):
        x, values, _, grad = product.operands()
        k = (product.pattern.size - product.pattern.nnz) // 4
        scale, shift = (torch.randn(x.shape[1], generator=generator) for _ in range(2))
        positions, gradients = topk(isa, product, grad, x, k, scale=scale, shift=shift, relu=True)
        across = -1, *[1] * (x.dim() - 2)
        read = (x.double() * scale.double().view(across) + shift.double().view(across)).relu()
        truth = product.truth(Operands(read, values, None, grad)).grad_weight
        terms = product.truth(Operands(read, values, None, grad.abs())).grad_weight
        # A gradient may change places with one that differs by less than the rounding of either.
        slack = 2e-6 * float(terms.max())
        wanted = best_of(truth, product.pattern, k)[1]
        assert torch.allclose(gradients.double(), truth.view(-1)[positions], rtol=2e-6, atol=slack), product
        assert torch.allclose(gradients.double().abs(), wanted.abs(), rtol=2e-6, atol=slack), product


@SETS
def test_topk_memory_does_not_grow_with_the_weight(isa):
    """Neither with the rows nor, beyond a chunk, with anything else but k."""
    torch.set_num_threads(1)

    def bytes_for(rows: int, k: int) -> int:
        product = kept_at(0.1, (rows, 128, 3, 3), (16, 128, 4, 4))
        return native.topk_pruned(problem_of(isa, product), 0, (0, 0, 0), False, (0, 0), k, 0, 0, 0)

    assert bytes_for(100, 100) == bytes_for(400, 100)
    assert bytes_for(400, 60_000) - bytes_for(400, 10_000) == 2 * 16 * 50_000
