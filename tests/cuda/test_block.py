"""Structured products on tensor cores: CUDA kernels on the CPU against dense float64, under every schedule."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase
from tests.cuda.block_products import BlockProduct
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, Results
from tests.cuda.test_csr16 import errors, stored

# Of 16-bit storage the last rounding, as in csr16. TF32 rounds both operands to 11 bits; three of its products lose
# what is below the 22nd.
TOLERANCE = {FLOAT32: 2e-6, BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11}
TF32_TOLERANCE = 1e-3
SAME = Geometry(padding=(1, 1))


@dataclass(frozen=True)
class Structured:
    """A product with a structured mask, and the strips that it is computed in."""

    product: ProductCase
    widths: tuple[int, int]

    def stored(self, dtype: int, *, tf32: bool = False) -> BlockProduct:
        return BlockProduct(**vars(stored(self.product, dtype)), widths=self.widths, tf32=tf32)


def structured_mask(shape, groups, block, density, seed):
    """Blocks of (output, input) channels, kept or pruned whole at each kernel position; cut off where groups end."""
    outputs, inputs, *kernel = shape
    generator = torch.Generator().manual_seed(seed)
    high, wide = (-(-size // length) for size, length in zip((outputs // groups, inputs), block, strict=True))
    kept = torch.rand((groups, high, wide, *kernel), generator=generator) < density
    whole = kept.repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
    return whole[:, : outputs // groups, :inputs].reshape(shape)


def block(size, shape, input, geometry=None, *, density=0.4, seed=0) -> Structured:
    return _structured((size, size), (size, size), shape, input, geometry, density, seed)


def vector(size, shape, input, geometry=None, *, density=0.4, seed=0, backward=16) -> Structured:
    return _structured((size, 1), (size, backward), shape, input, geometry, density, seed)


def _structured(kept, widths, shape, input, geometry, density, seed) -> Structured:
    mask = structured_mask(shape, geometry.groups if geometry else 1, kept, density, seed)
    pattern = Pattern.from_mask(mask)
    return Structured(ProductCase(Case(shape, input, pattern.nnz, geometry), pattern, True, seed), widths)


CASES = {
    "blocks of 16, several tiles": block(16, (48, 32, 3, 3), (9, 32, 9, 2), SAME, density=0.2),
    "blocks of 32, several slabs": block(32, (32, 96, 3, 3), (3, 96, 5, 9), SAME, density=0.2),
    "vectors of 32, several slabs": vector(32, (64, 56, 3, 3), (1, 56, 5, 9), SAME, density=0.1),
    "vectors of 16": vector(16, (32, 19, 3, 2), (7, 19, 6, 5), Geometry(padding=(1, 0)), density=0.3),
    "vectors of 8": vector(8, (24, 9, 3, 3), (2, 9, 7, 6), SAME, backward=8),
    "strides": block(16, (16, 32, 3, 3), (3, 32, 11, 13), Geometry((2, 2), (1, 1)), density=0.5),
    "strides beyond the kernel": vector(16, (16, 17, 2, 1), (3, 17, 7, 9), Geometry((3, 4), (1, 0)), density=0.6),
    "dilation": block(16, (16, 16, 3, 3), (2, 16, 9, 8), Geometry((2, 1), (2, 2), (2, 3)), density=0.6),
    "groups": block(16, (64, 16, 3, 3), (2, 32, 5, 6), Geometry((1, 2), (1, 1), groups=2), density=0.5),
    "channels that no strip divides": block(16, (40, 24, 1, 3), (4, 48, 3, 9), Geometry(groups=2), density=0.6),
    "one input": vector(32, (32, 1, 3, 3), (5, 1, 8, 3), SAME, density=0.5, backward=8),
    "large kernel, two passes": vector(8, (8, 16, 9, 8), (1, 16, 9, 8), Geometry(), density=2.0),
    "strips of three blocks, two passes": block(16, (144, 48, 3, 3), (16, 48, 5, 6), SAME, density=2.0),
    "strips of two blocks": vector(32, (104, 16, 3, 3), (9, 16, 7, 9), SAME, density=0.3),
    "narrow strips of two blocks": vector(8, (72, 9, 3, 1), (5, 9, 6, 5), Geometry(), density=0.5, backward=8),
    "three images, two of them in a tile of 16 bits": block(16, (32, 32, 3, 3), (24, 32, 5, 6), SAME, density=0.3),
    "dense": block(16, (32, 16, 2, 2), (2, 16, 5, 5), Geometry(), density=2.0),
    "empty": block(16, (32, 16, 3, 3), (2, 16, 4, 4), SAME, density=-1.0),
    "pointwise": block(32, (64, 64, 1, 1), (8, 64, 9, 8), Geometry(), density=0.5),
    "a linear layer": block(16, (80, 304), (33, 304), density=0.2),
    "a linear layer of blocks of 32": block(32, (96, 64), (130, 64), density=0.5),
    "a linear layer of vectors": vector(16, (48, 50), (7, 50), density=0.3),
    "one sample": vector(32, (64, 33), (1, 33), density=0.2),
}  # fmt: skip


def check(shim, case: Structured, dtype: int = FLOAT32, *, tf32: bool = False) -> Results:
    results = case.stored(dtype, tf32=tf32).run(shim)
    for name, error in errors(case.product, dtype, results).items():
        assert error < (TF32_TOLERANCE if tf32 else TOLERANCE[dtype]), f"{name} is off by {error:.2e}"
    return results


@pytest.mark.parametrize("name", CASES)
def test_products(scheduled, name):
    """The same cases under every schedule: what differs is the order of threads alone."""
    check(scheduled, CASES[name], BFLOAT16)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "tf32"), [(FLOAT16, False), (FLOAT32, True), (FLOAT32, False)], ids=["float16", "tf32", "3xtf32"]
)
def test_arithmetics(shim, name, dtype, tf32):
    shim.seed(1)
    check(shim, CASES[name], dtype, tf32=tf32)
    shim.seed(0)


@pytest.mark.parametrize("tf32", [False, True], ids=["3xtf32", "tf32"])
def test_float32_under_every_schedule(scheduled, tf32):
    check(scheduled, CASES["vectors of 16"], tf32=tf32)
    check(scheduled, CASES["blocks of 32, several slabs"], tf32=tf32)


def test_rounding_to_tf32_has_no_drift(shim):
    """Operands that are cut off make sums of positive terms about 7e-4 too small."""
    case = CASES["pointwise"]
    held = case.stored(FLOAT32, tf32=True)
    held = replace(held, x=abs(held.x), values=abs(held.values), bias=0 * held.bias, grad=abs(held.grad))
    y = held.run(shim).y.astype(np.float64)
    weight = case.product.pattern.scatter(torch.from_numpy(held.values)).double()[:, :, 0, 0]
    truth = torch.einsum("oi,bihw->bohw", weight, torch.from_numpy(held.x).double()).numpy()
    assert abs(y.sum() / truth.sum() - 1) < 1e-4


def test_the_schedule_changes_no_bit(shim):
    cases = ["blocks of 32, several slabs", "vectors of 8", "groups", "a linear layer"]
    products = [CASES[name].stored(dtype) for name in cases for dtype in (FLOAT32, BFLOAT16)]

    def everything(seed):
        shim.seed(seed)
        return [array.tobytes() for product in products for array in product.run(shim)]

    assert everything(0) == everything(4)
    shim.seed(0)


@pytest.mark.parametrize("name", ["strides", "strides beyond the kernel", "a linear layer of vectors", "empty"])
def test_a_gradient_alone_is_what_it_is_beside_the_other(shim, name):
    held = CASES[name].stored(BFLOAT16)
    both = held.run(shim)
    alone = held.run(shim, (True, False)).grad_x, held.run(shim, (False, True)).grad_values
    assert [array.tobytes() for array in alone] == [both.grad_x.tobytes(), both.grad_values.tobytes()]


@pytest.mark.parametrize(("name", "gathers"), [("dense", 1), ("strides", 1), ("strides beyond the kernel", 3)])
def test_launches(shim, name, gathers):
    """Values packed and multiplied; parts of the values' gradient; then four residues at a time."""
    held = CASES[name].stored(FLOAT16)
    before = shim.launches
    held.run(shim)
    turned = 4  # x and grad_y in, y and grad_x out
    assert shim.launches - before == turned + 2 + 1 + gathers


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_what_lists_have_room_for_besides_is_left_alone(shim, dtype):
    shim.seed(1)
    for name in ("vectors of 16", "a linear layer of blocks of 32", "empty"):
        held = CASES[name].stored(dtype)
        found, wanted = replace(held, spare=3).run(shim), held.run(shim)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))
    shim.seed(0)


def finite(results: Results) -> bool:
    return all(np.isfinite(array).all() for array in results)


def test_pruned_inputs_are_never_touched(shim):
    """Infinite channels that no kept weight reads leave every result finite, although chunks are filled up."""
    case = CASES["vectors of 16"]
    mask = case.product.pattern.mask()
    mask[:, [3, 8]] = False
    pattern = Pattern.from_mask(mask)
    product = replace(case.product, pattern=pattern, case=replace(case.product.case, nnz=pattern.nnz))
    held = replace(case, product=product).stored(FLOAT16)
    x = held.x.copy()
    x[:, [3, 8]] = np.inf
    assert finite(replace(held, x=x).run(shim))


def test_infinite_pixels_reach_only_the_lines_that_meet_them(shim):
    """Tiles overhang the picture; what lies there must not multiply an infinite pixel by zero."""
    case = vector(8, (8, 1, 1, 2), (1, 1, 1, 9), Geometry((1, 2)), density=2.0, backward=8)
    for dtype in (FLOAT32, FLOAT16):
        held = case.stored(dtype)
        x = held.x.copy()
        x[..., 8] = np.inf  # output pixels end at input pixel 7; a fifth one would begin at 8
        assert finite(replace(held, x=x).run(shim))


def test_lines_of_a_matrix_lie_in_different_banks(shim):
    """Eight lines of one ldmatrix: distances differ modulo 8 in blocks, where the list lets them."""
    lines = CASES["blocks of 16, several tiles"].stored(BFLOAT16).lines(shim, backward=False)
    distances = lines.offset.reshape(-1, 8)
    real = lines.value.reshape(-1, 16 * 16).max(1) >= 0
    assert real.all()
    assert all(len(set(row % 8)) == 8 for row in distances)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_strips_share_blocks_where_there_are_many(shim, dtype):
    """Blocks of 512 threads take twice the strips; the picture makes enough of them here."""
    case = block(32, (128, 32, 1, 1), (1, 32, 47, 90), Geometry(), density=0.3)
    assert -(-47 // 4) * -(-90 // 8) >= 132
    shim.seed(1)
    check(shim, case, dtype, tf32=dtype == FLOAT32)
    shim.seed(0)
