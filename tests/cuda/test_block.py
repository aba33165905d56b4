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
    "blocks of 16, several tiles": block(16, (48, 32, 3, 3), (9, 32, 9, 10), SAME, density=0.3),
    "blocks of 32, several slabs": block(32, (32, 96, 3, 3), (3, 96, 5, 9), SAME, density=0.2),
    "vectors of 32, several slabs": vector(32, (64, 40, 3, 3), (1, 40, 9, 9), SAME, density=0.15),
    "vectors of 16": vector(16, (32, 19, 3, 2), (7, 19, 6, 5), Geometry(padding=(1, 0)), density=0.3),
    "vectors of 8": vector(8, (24, 9, 3, 3), (2, 9, 7, 6), SAME, backward=8),
    "strides": block(16, (16, 32, 3, 3), (3, 32, 11, 13), Geometry((2, 2), (1, 1)), density=0.5),
    "strides beyond the kernel": vector(16, (16, 17, 2, 1), (3, 17, 7, 9), Geometry((3, 4), (1, 0)), density=0.6),
    "dilation": block(16, (16, 16, 3, 3), (2, 16, 9, 8), Geometry((2, 1), (2, 2), (2, 3)), density=0.6),
    "groups": block(16, (64, 16, 3, 3), (2, 32, 5, 6), Geometry((1, 2), (1, 1), groups=2), density=0.5),
    "channels that no strip divides": block(16, (40, 24, 1, 3), (4, 48, 3, 9), Geometry(groups=2), density=0.6),
    "one input": vector(32, (32, 1, 3, 3), (5, 1, 8, 3), SAME, density=0.5, backward=8),
    "large kernel, two passes": vector(8, (8, 16, 9, 8), (1, 16, 9, 8), Geometry(), density=1.0),
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
    check(scheduled, CASES[name], BFLOAT16)
