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
    lanes = native.lanes(isa)
    if tensor.dim() == 2:
        tensor = tensor[:, :, None, None]
    groups = -(-len(tensor) // lanes)
    full = torch.full((groups * lanes, *tensor.shape[1:]), empty)
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
    arguments = isa, sizes(case), address(grad), term, relu, first, last, address(out)
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


def everything_kept(shape: tuple[int, ...], size: tuple[int, ...], **moves) -> ProductCase:
    pattern = Pattern.from_mask(torch.ones(shape, dtype=torch.bool))
    geometry = Geometry(**{"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **moves})
    return ProductCase(Case(shape, size, pattern.nnz, geometry, torch.float32), pattern, False, 0)


@SETS
def test_agrees_with_float64(isa, rng):
    for number, product in enumerate(product_cases(rng, 200)):
        torch.set_num_threads(1 + number % 2)
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
    ids=str,
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
