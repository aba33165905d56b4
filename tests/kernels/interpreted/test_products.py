"""The triton backend against dense float64, in main memory."""

import pytest
import torch

from fedsparse import nn
from fedsparse.backends import Case, Geometry
from fedsparse.backends.triton import TritonBackend
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_backend
from tests.kernels.masks import block_mask, vector_mask

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SAME = Geometry(padding=(1, 1))


def product(mask, size, geometry=None, *, dtype=torch.float32, bias=True, seed=0) -> ProductCase:
    pattern = Pattern.from_mask(mask)
    return ProductCase(Case(tuple(mask.shape), size, pattern.nnz, geometry, dtype), pattern, bias, seed)


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def with_gaps(shape, density):
    """A row and an input that keep nothing."""
    mask = random_mask(shape, density)
    mask[shape[0] // 2], mask[:, shape[1] // 2] = False, False
    return mask


SCALAR = {
    "linear": product(with_gaps((5, 21), 0.4), (9, 21)),
    "linear of batch 1": product(random_mask((3, 17), 0.3), (1, 17), bias=False),
    "nothing kept": product(torch.zeros(3, 4, dtype=torch.bool), (2, 4)),
    "everything kept": product(torch.ones(4, 9, dtype=torch.bool), (3, 9)),
    "an empty batch": product(random_mask((3, 4), 0.5), (0, 4)),
    "over one tile of samples": product(random_mask((2, 3), 0.7), (130, 3)),
    "gradients in parts": product(random_mask((2, 2, 1, 2), 0.7), (1, 2, 33, 34), Geometry()),
    "3x3": product(with_gaps((4, 3, 3, 3), 0.4), (2, 3, 5, 7), SAME),
    "strided and lopsided": product(random_mask((3, 2, 3, 2), 0.6), (2, 2, 7, 6), Geometry((2, 3), (2, 1))),
    "dilated": product(random_mask((2, 3, 2, 3), 0.5), (1, 3, 8, 9), Geometry((1, 2), (1, 3), (3, 2))),
    "groups": product(random_mask((6, 2, 3, 3), 0.3), (2, 6, 4, 4), Geometry(padding=(1, 1), groups=3)),
    "depthwise": product(random_mask((4, 1, 3, 3), 0.7), (1, 4, 5, 5), Geometry((2, 2), (1, 1), groups=4)),
    "padding beyond the kernel": product(random_mask((2, 2, 1, 2), 0.8), (1, 2, 1, 1), Geometry((1, 2), (3, 4))),
    "stride beyond the kernel": product(random_mask((3, 2, 1, 1), 0.8), (2, 2, 5, 6), Geometry((3, 2))),
}
TILED = {
    "vector linear": product(vector_mask((32, 40), 16, 0.3), (9, 40)),
    "vector linear in parts": product(vector_mask((16, 300), 16, 0.7), (7, 300)),
    "gradients in parts": product(vector_mask((16, 6), 16, 0.5), (300, 6)),
    "block linear": product(block_mask((32, 64), 16, 0.4), (33, 64)),
    "block of 32": product(block_mask((64, 64), 32, 0.5), (3, 64), bias=False),
    "vector of 64": product(vector_mask((64, 5, 2, 2), 64, 0.5), (2, 5, 4, 4), Geometry((2, 1), (1, 0))),
    "vector 3x3": product(vector_mask((16, 5, 3, 3), 16, 0.3), (3, 5, 6, 5), SAME),
    "vector, strided": product(vector_mask((16, 3, 3, 2), 16, 0.6), (2, 3, 7, 9), Geometry((2, 3), (2, 1), (2, 1))),
    "vector in groups": product(vector_mask((32, 2, 3, 3), 16, 0.4), (2, 4, 4, 5), Geometry(padding=(1, 1), groups=2)),
    "block 3x3": product(block_mask((32, 32, 3, 3), 16, 0.3), (2, 32, 5, 4), SAME),
    "block 1x1, strided": product(block_mask((16, 32, 1, 1), 16, 0.6), (2, 32, 5, 5), Geometry((2, 2))),
    "nothing kept": product(torch.zeros(16, 4, 3, 3, dtype=torch.bool), (2, 4, 3, 3), SAME),
    "everything kept": product(torch.ones(16, 3, 3, 3, dtype=torch.bool), (1, 3, 4, 4), SAME),
}
UNITED = {
    "linear": product(with_gaps((21, 33), 0.2), (9, 33)),
    "3x3": product(with_gaps((20, 7, 3, 3), 0.2), (2, 7, 4, 5), Geometry((1, 2), (1, 1))),
    "groups": product(random_mask((6, 2, 2, 2), 0.4), (1, 6, 5, 4), Geometry(padding=(1, 0), groups=3)),
    "a tile and a bit": product(vector_mask((24, 6), 8, 0.4), (5, 6)),
}


@pytest.mark.parametrize("name", SCALAR)
def test_scalar_kernels_agree_with_float64(name):
    check_backend(TritonBackend(rows=1), SCALAR[name])


@pytest.mark.parametrize("name", TILED)
def test_tiles_are_found_and_agree_with_float64(name):
    backend, case = TritonBackend(), TILED[name]
    check_backend(backend, case)
    tiles = backend._tiles(case.pattern, case.case, transposed=False)
    assert tiles.rows >= 16
    assert tiles.slot is None  # values are read where they are


@pytest.mark.parametrize("name", UNITED)
def test_united_rows_agree_with_float64(name):
    check_backend(TritonBackend(rows=16), UNITED[name])


@pytest.mark.parametrize(
    ("rows", "case"),
    [
        (1, product(random_mask((3, 2, 3, 3), 0.5), (2, 2, 5, 4), SAME, dtype=torch.float16)),
        (None, product(vector_mask((16, 3, 3, 3), 16, 0.4), (2, 3, 5, 4), SAME, dtype=torch.float16)),
        (None, product(block_mask((16, 32), 16, 0.6), (5, 32), dtype=torch.float16)),
    ],
)
def test_half_precision(rows, case):
    x, values, bias, grad = operands = case.operands()
    truth, backend = case.truth(operands), TritonBackend(rows)
    y = backend.forward(x, values, case.pattern, bias, case.case)
    found = backend.backward(grad, x, values, case.pattern, (True, True), case.case)
    # rounded once, from sums in float32
    for got, wanted in ((y, truth.y), (found.x, truth.grad_x), (found.values, truth.grad_weight[case.pattern.mask()])):
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "case"), [(1, SCALAR["3x3"]), (None, TILED["vector linear in parts"])])
def test_same_bits_twice(rows, case):
    x, values, bias, grad = case.operands()
    backend = TritonBackend(rows)

    def results():
        y = backend.forward(x, values, case.pattern, bias, case.case)
        return [y, *backend.backward(grad, x, values, case.pattern, (True, True), case.case)]

    assert all(torch.equal(a, b) for a, b in zip(results(), results(), strict=True))


@pytest.mark.parametrize("rows", [1, 16])
def test_pruned_inputs_are_never_touched(rows):
    mask = torch.ones(16, 20, dtype=torch.bool)
    mask[:, 7] = False
    case, x = product(mask, (4, 20)), torch.ones(4, 20)
    x[:, 7] = torch.inf
    y = TritonBackend(rows).forward(x, torch.ones(case.pattern.nnz), case.pattern, None, case.case)
    assert torch.equal(y, torch.full((4, 16), 19.0))


def test_a_layer_trains_on_it():
    """Through the op and autograd, which hand over a pattern without its granularity."""
    mask = vector_mask((16, 6), 16, 0.5)
    dense = torch.nn.Linear(6, 16)
    layers = [nn.SparseLinear.from_dense(dense, mask) for _ in range(2)]
    for layer, backend in zip(layers, ("triton", "reference"), strict=True):
        nn.set_backend(layer, backend)
        x = torch.linspace(-1, 1, 18).view(3, 6).requires_grad_()
        layer(x).square().sum().backward()
        layer.slope = x.grad
    assert torch.allclose(layers[0].values.grad, layers[1].values.grad, rtol=1e-5, atol=1e-6)
    assert torch.allclose(layers[0].bias.grad, layers[1].bias.grad, rtol=1e-5, atol=1e-6)
    assert torch.allclose(layers[0].slope, layers[1].slope, rtol=1e-5, atol=1e-6)
