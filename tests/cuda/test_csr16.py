"""Unstructured products: CUDA kernels on the CPU against dense float64, under every schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, product_cases, relative_error
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, ConvShape, Product, Results, as_float, as_stored, poisoned

# Sums are float32; where 16 bits are stored the result is rounded once more, by at most 2^-8 or 2^-11 of itself.
TOLERANCE = {FLOAT32: 2e-6, BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11}


def shape14(case: Case) -> tuple[int, ...]:
    """The fields of ConvShape."""
    if case.geometry is None:
        return (case.input[0], case.shape[1], 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1)
    g = case.geometry
    return (*case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups)


def stored(product: ProductCase, dtype: int) -> Product:
    """The product as the device holds it."""
    operands = product.operands()
    bias = torch.empty(0) if operands.bias is None else operands.bias
    x, values, bias, grad = (as_stored(t.numpy(), dtype) for t in (operands.x, operands.values, bias, operands.grad))
    pattern = product.pattern
    return Product(
        shape14(product.case), pattern.row_start.numpy(), pattern.column.numpy(), dtype, x, values, bias, grad
    )


def errors(product: ProductCase, dtype: int, results: Results) -> dict[str, float]:
    """Relative error of each result, as `check_backend` measures it."""
    held = stored(product, dtype)
    x, values, bias, grad = (torch.from_numpy(as_float(a, dtype)) for a in (held.x, held.values, held.bias, held.grad))
    operands = product.operands()._replace(x=x, values=values, bias=bias if len(bias) else None, grad=grad)
    magnitudes = operands._replace(**{n: None if t is None else t.abs() for n, t in operands._asdict().items()})
    truth, terms, mask = product.truth(operands), product.truth(magnitudes), product.pattern.mask()
    wanted = (truth.y, truth.grad_x, truth.grad_weight[mask])
    sums = (terms.y, terms.grad_x, terms.grad_weight[mask])
    return {
        name: relative_error(torch.from_numpy(as_float(got, dtype)), right, floor=0.05 * float(size.norm()))
        for name, got, right, size in zip(Results._fields, results, wanted, sums, strict=True)
    }


def check(shim, product: ProductCase, dtype: int = FLOAT32) -> Results:
    results = stored(product, dtype).run(shim)
    for name, error in errors(product, dtype, results).items():
        assert error < TOLERANCE[dtype], f"{name} is off by {error:.2e} for {product}"
    return results


def one_case(shape, size, geometry=None, *, density=0.1, seed=0) -> ProductCase:
    generator = torch.Generator().manual_seed(seed)
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < density)
    return ProductCase(Case(shape, size, pattern.nnz, geometry), pattern, True, seed)


SAME = Geometry(padding=(1, 1))
SPECIAL = {
    "several tiles, slabs and row blocks": one_case((70, 40, 3, 3), (9, 40, 17, 10), SAME, density=0.03),
    "three images, two of them in a tile of 16 bits": one_case((20, 6, 3, 3), (24, 6, 6, 7), SAME, density=0.2),
    "more taps than a warp stages": one_case((5, 30, 3, 3), (8, 30, 9, 9), SAME, density=0.9),
    "a slab for each channel": one_case((3, 5, 21, 21), (2, 5, 24, 24), Geometry(), density=0.05),
    "dense": one_case((6, 5, 3, 2), (3, 5, 8, 7), Geometry((2, 1), (1, 2)), density=2.0),
    "empty": one_case((6, 5, 3, 3), (3, 5, 8, 7), SAME, density=-1.0),
    "stride beyond the picture": one_case((4, 3, 1, 1), (2, 3, 2, 3), Geometry((4, 5)), density=0.5),
    "stride beyond the kernel": one_case((4, 3, 2, 1), (3, 3, 11, 13), Geometry((3, 4), (1, 0)), density=0.6),
    "dilation that shares residues": one_case((4, 4, 3, 3), (2, 4, 13, 12), Geometry((2, 2), (2, 2), (2, 2))),
    "groups of row blocks": one_case((80, 2, 1, 3), (2, 4, 5, 9), Geometry((1, 2), (0, 1), groups=2), density=0.5),
    "depthwise": one_case((24, 1, 3, 3), (4, 12, 7, 6), Geometry((1, 1), (1, 1), (1, 1), 12), density=0.7),
    "nearly all border": one_case((3, 2, 3, 3), (17, 2, 1, 1), Geometry((1, 1), (5, 4), (2, 3)), density=0.5),
    "a wide linear layer": one_case((150, 700), (33, 700), density=0.05),
    "one sample": one_case((33, 65), (1, 65), density=0.2),
    "a batch of several tiles": one_case((9, 40), (300, 40), density=0.4),
}  # fmt: skip


LARGE = {
    "four pixels to a thread": one_case((5, 7, 3, 3), (1, 7, 130, 121), SAME, density=0.3),
    "one pixel to a thread, two of 16 bits": one_case((6, 9, 1, 1), (4222, 9, 3, 4), Geometry(), density=0.4),
}


def test_awkward_products(scheduled):
    """The same cases under every schedule: what differs is the order of threads alone."""
    for product in product_cases(np.random.default_rng(7), 60):
        check(scheduled, product)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_products(scheduled, name):
    check(scheduled, SPECIAL[name])


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_16_bit_storage(shim, dtype):
    """Numbers of 16 bits, sums of 32: errors are those of the last rounding."""
    shim.seed(1)
    for product in (*product_cases(np.random.default_rng(11), 30), *SPECIAL.values(), *LARGE.values()):
        check(shim, product, dtype)
    shim.seed(0)


def test_the_schedule_changes_no_bit(shim):
    products = [*product_cases(np.random.default_rng(3), 12), SPECIAL["several tiles, slabs and row blocks"]]

    def everything(seed):
        shim.seed(seed)
        return [array.tobytes() for product in products for array in stored(product, FLOAT32).run(shim)]

    assert everything(0) == everything(4)
    shim.seed(0)


@pytest.mark.parametrize("name", ["dense", "stride beyond the kernel", "a wide linear layer", "empty"])
def test_a_gradient_alone_is_what_it_is_beside_the_other(shim, name):
    held = stored(SPECIAL[name], FLOAT32)
    both = held.run(shim)
    alone = held.run(shim, (True, False)).grad_x, held.run(shim, (False, True)).grad_values
    assert [array.tobytes() for array in alone] == [both.grad_x.tobytes(), both.grad_values.tobytes()]


@pytest.mark.parametrize(("name", "gathers"), [("dense", 1), ("stride beyond the kernel", 3)])
def test_launches(shim, name, gathers):
    """A forward pass, parts of the values' gradient, then four residues at a time, the first with the sums of parts."""
    held = stored(SPECIAL[name], FLOAT32)
    before = shim.launches
    held.run(shim)
    turned = 4  # x and grad_y in, y and grad_x out
    assert shim.launches - before == turned + 1 + 1 + gathers


def test_a_list_serves_every_batch(shim):
    product = stored(SPECIAL["a batch of several tiles"], FLOAT32)
    for backward in (False, True):
        small = replace(product, shape=(1, *product.shape[1:])).list(shim, backward)
        for array, other in zip(product.list(shim, backward), small, strict=True):
            assert np.array_equal(array, other)


def test_pruned_inputs_are_never_touched(shim):
    """An infinite pixel that no kept weight reads leaves every result finite; a dense product gives NaN."""
    mask = torch.ones(3, 4, 3, 3, dtype=torch.bool)
    mask[:, 2] = False
    case = Case((3, 4, 3, 3), (2, 4, 5, 6), int(mask.sum()), SAME)
    product = stored(ProductCase(case, Pattern.from_mask(mask), False, 0), FLOAT32)
    x = product.x.copy()
    x[:, 2] = np.inf
    found, clean = replace(product, x=x).run(shim), product.run(shim)
    assert all(np.array_equal(a, b) for a, b in zip(found, clean, strict=True))


def test_infinite_pixels_reach_only_the_taps_that_meet_them(shim):
    """Tiles overhang the picture; what lies there must not multiply an infinite pixel by zero."""
    product = stored(one_case((2, 1, 1, 2), (1, 1, 1, 9), density=2.0, geometry=Geometry((1, 2))), FLOAT32)
    x = product.x.copy()
    x[..., 8] = np.inf  # output pixels end at input pixel 7; a fifth one would begin at 8
    assert np.isfinite(replace(product, x=x).run(shim).grad_values).all()


def test_what_does_not_fit_is_refused(shim):
    """One channel of a kernel of 60 by 60 needs 63 x 63 lines of 32 bytes."""
    wide = ConvShape(1, 2, 64, 64, 2, 60, 60, 1, 1, 0, 0, 1, 1, 1)
    assert shim.value("fedsparse_csr16_start_size", wide, False, FLOAT32) == 0
    assert shim.value("fedsparse_csr16_start_size", wide, False, FLOAT16) > 0
    assert shim.value("fedsparse_csr16_partial_size", wide, FLOAT32, 5) == 0


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("batch", "size"), [(1, 1), (8, 32), (9, 33), (17, 100), (3, 5000)])
def test_lines(scheduled, rng, batch, size, dtype):
    rows = as_stored(rng.standard_normal((batch, size)), dtype)
    lines, back = (poisoned(n, rows.dtype.type) for n in (size * 8 * -(-batch // 8), rows.size))
    scheduled("fedsparse_cuda_to_lines", rows, lines, batch, size, dtype, None)
    padded = np.zeros((8 * -(-batch // 8), size), rows.dtype)
    padded[:batch] = rows
    assert np.array_equal(lines.reshape(-1, size, 8), padded.reshape(-1, 8, size).transpose(0, 2, 1))
    scheduled("fedsparse_cuda_from_lines", lines, back, batch, size, dtype, None)
    assert np.array_equal(back.reshape(batch, size), rows)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16])
def test_transposes(scheduled, rng, dtype):
    """Sides shorter than a tile, equal to it, and of several; nothing of no size."""
    for rows, columns in ((1, 1), (8, 3), (8, 700), (2049, 24), (64, 65), (130, 129), (1, 300), (0, 5), (5, 0)):
        x = as_stored(rng.standard_normal((rows, columns)), dtype)
        y = poisoned((columns, rows), x.dtype.type)
        scheduled("fedsparse_cuda_transpose", x, y, rows, columns, dtype, None)
        assert np.array_equal(y, x.T)


def test_unknown_dtypes_are_refused(shim):
    rows = np.zeros(8, np.float32)
    assert shim.value("fedsparse_cuda_to_lines", rows, rows, 1, 8, 9, None) == 1
    assert shim.value("fedsparse_cuda_transpose", rows, rows, 1, 8, 9, None) == 1


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("seed", [0, 1])
def test_warps_of_four_rows(shim, name, seed):
    """Where blocks of 32 rows suffice to fill a device, a warp takes four rows; forward and backward do here."""
    product = LARGE[name]
    (batch, inputs, *size), (outputs, *_) = product.case.input, product.case.shape
    tile = 4 if max(size) <= 4 else 8
    for rows in (inputs, outputs):
        assert math.prod(-(-n // tile) for n in size) * -(-batch // 8) * -(-rows // 32) >= 264
    shim.seed(seed)
    check(shim, product)
    shim.seed(0)
