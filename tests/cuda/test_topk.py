"""Streaming top-k against a stable sort of the dense gradient, under every schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, product_cases, relative_error
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, ConvShape, as_float, as_stored, poisoned
from tests.cuda.selection import dense_gradient, topk_pruned
from tests.cuda.test_csr16 import SPECIAL, one_case, stored


def pruned_positions(product: ProductCase) -> np.ndarray:
    return (~product.pattern.mask()).view(-1).nonzero().squeeze(1).numpy()


def best_first(gradients: np.ndarray, positions: np.ndarray, k: int) -> np.ndarray:
    """The answer by definition: NaN first, then falling magnitude, ties by position."""
    magnitude = np.where(np.isnan(gradients), np.inf, np.abs(gradients))[positions]
    return positions[np.lexsort((positions, -magnitude, ~np.isnan(gradients[positions])))][:k]


def check_topk(shim, held, gradients, pruned, counts, *, tf32=False) -> None:
    for k in sorted({k for k in counts if k <= len(pruned)}):
        positions, found = topk_pruned(shim, held, k, tf32=tf32)
        assert np.array_equal(positions, best_first(gradients, pruned, k)), f"other positions for k = {k}"
        np.testing.assert_array_equal(found, gradients[positions])


def check_gradient(product: ProductCase, held, found: np.ndarray, tolerance: float = 2e-6) -> None:
    operands = product.operands()
    x, grad = (torch.from_numpy(as_float(a, held.dtype)) for a in (held.x, held.grad))
    truth = product.truth(operands._replace(x=x, grad=grad)).grad_weight
    terms = product.truth(operands._replace(x=x.abs(), grad=grad.abs())).grad_weight
    error = relative_error(torch.from_numpy(found).view(truth.shape), truth, floor=0.05 * float(terms.norm()))
    assert error < tolerance, f"off by {error:.2e} for {product}"


def test_awkward_products(scheduled):
    """Sizes, strides, paddings, dilations and groups of all kinds; densities from 0 to 1; k from none to all."""
    for product in product_cases(np.random.default_rng(7), 4):
        held, pruned = stored(product, FLOAT32), pruned_positions(product)
        gradients = dense_gradient(scheduled, held)
        check_gradient(product, held, gradients)
        check_topk(scheduled, held, gradients, pruned, (0, 1, len(pruned) // 3, len(pruned)))


SHAPES = {
    "one sample": one_case((70, 40), (1, 40)),
    "three samples, groups and strides": one_case((66, 2, 2, 3), (3, 6, 7, 6), Geometry((2, 1), (1, 2), groups=3)),
    "eight samples, several slabs, stride 2": one_case((33, 37, 3, 3), (8, 37, 7, 5), Geometry((2, 2), (1, 1))),
    "sixteen samples, dilation": one_case((40, 20, 3, 2), (16, 20, 6, 7), Geometry((1, 1), (2, 1), (2, 1))),
    "24 samples, two of three images in a tile": one_case((9, 5, 1, 3), (24, 5, 4, 9), Geometry(padding=(0, 1))),
    "a kernel of several passes": one_case((8, 2, 19, 18), (2, 2, 20, 19), Geometry()),
}


@pytest.mark.parametrize("name", SHAPES)
def test_arithmetics(shim, name):
    """Gradients of every arithmetic, and the largest of them."""
    product, pruned = SHAPES[name], pruned_positions(SHAPES[name])
    shim.seed(1)
    for dtype, tf32 in ((FLOAT32, False), (FLOAT32, True), (BFLOAT16, False), (FLOAT16, False)):
        held = stored(product, dtype)
        gradients = dense_gradient(shim, held, tf32=tf32)
        check_gradient(product, held, gradients, 1e-3 if tf32 else 2e-6)
        check_topk(shim, held, gradients, pruned, (len(pruned) // 3,), tf32=tf32)
    shim.seed(0)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_what_no_tap_meets_may_be_infinite(shim, dtype):
    """Pixels that a stride leaves out, next to others in the slab, and a padded border."""
    product = one_case((5, 3, 2, 2), (9, 3, 8, 11), Geometry((3, 3), (1, 0)))
    held = stored(product, dtype)
    x = as_float(held.x, dtype)
    x[:, :, 1::3], x[:, :, :, 2::3] = np.inf, np.nan
    found = dense_gradient(shim, replace(held, x=as_stored(x, dtype)))
    x[:, :, 1::3], x[:, :, :, 2::3] = 0, 0
    wanted = dense_gradient(shim, replace(held, x=as_stored(x, dtype)))
    assert np.isfinite(found).all()
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_16_bit_storage(shim, dtype):
    """Sums and results are of 32 bits."""
    shim.seed(1)
    for product in (*product_cases(np.random.default_rng(11), 5), SPECIAL["groups of row blocks"]):
        held, pruned = stored(product, dtype), pruned_positions(product)
        gradients = dense_gradient(shim, held)
        check_gradient(product, held, gradients)
        check_topk(shim, held, gradients, pruned, (1, len(pruned) // 2))
    shim.seed(0)


@pytest.mark.parametrize("name", ["three images, two of them in a tile of 16 bits", "a wide linear layer"])
def test_the_schedule_changes_no_bit(shim, name):
    """Sums of several blocks of threads, and of warps that share a chunk of lines."""
    product = SPECIAL[name]
    held = stored(product, FLOAT32)

    def bits(seed):
        shim.seed(seed)
        return dense_gradient(shim, held).tobytes()

    found = bits(0)
    check_gradient(product, held, np.frombuffer(found, np.float32).copy())
    assert all(bits(seed) == found for seed in (1, 2))
    gradients, pruned = np.frombuffer(found, np.float32), pruned_positions(product)
    check_topk(shim, held, gradients, pruned, (len(pruned) // 2,))
    shim.seed(0)


SIDE = 300  # five rows of tiles, of four slabs of 96 columns each; a piece of 32 x 32 positions in 16 is sampled
SAMPLED = [(0, 0), (160, 64), (224, 32), (224, 160), (288, 128), (288, 256)]  # where those begin that are not empty


def planted(rows: np.ndarray, columns: np.ndarray, density: float = 0.1, dtype: int = FLOAT32):
    """A linear layer whose dense gradient is the outer product of these: of 11 bits, which no arithmetic rounds."""
    product = one_case((len(rows), len(columns)), (1, len(columns)), density=density, seed=5)
    grad, x = (as_stored(side[None].astype(np.float32), dtype) for side in (rows, columns))
    held = replace(stored(product, dtype), grad=grad, x=x)
    gradients = np.outer(grad[0].astype(np.float32), x[0].astype(np.float32)).reshape(-1)
    return held, gradients, pruned_positions(product)


def spread(generator, size: int = SIDE) -> np.ndarray:
    return (generator.uniform(0.5, 1.0, size) * generator.choice((-1, 1), size)).astype(np.float16).astype(np.float32)


def test_a_large_weight(scheduled, rng):
    """More pruned positions than the list has room for; of a short list entries are ranked, a long one is sorted."""
    held, gradients, pruned = planted(spread(rng), spread(rng))
    check_topk(scheduled, held, gradients, pruned, (3000, 5000))


@pytest.mark.parametrize("side", [60, 100, 250])
def test_a_small_weight(scheduled, rng, side):
    """All positions are listed, or those within a bound that a histogram of all tells, or nothing but ties."""
    held, gradients, pruned = planted(spread(rng, side), spread(rng, side))
    check_topk(scheduled, held, gradients, pruned, (1, len(pruned) // 7))
    ones = np.ones(min(side, 100))
    held, gradients, pruned = planted(ones, ones)
    check_topk(scheduled, held, gradients, pruned, (70,))


def test_launches_of_each_size(shim, rng):
    """Begun, products, then: listed and ranked; a bound in between; a sample's bound and repairs, ranked or sorted."""
    repairs = 2 * 5 + 1  # digits of keys of 48 bits, and listed again
    for side, k, wanted in ((60, 9, 4), (250, 9, 6), (SIDE, 9, 6 + repairs), (SIDE, 5000, 6 + repairs + 2 * 6)):
        held, _, _ = planted(spread(rng, side), spread(rng, side))
        before = shim.launches
        topk_pruned(shim, held, k)
        assert shim.launches - before - 2 == wanted, (side, k)  # two turn the activations


@pytest.mark.parametrize("wrong", ["too many", "too few"])
def test_samples_that_mislead(scheduled, rng, wrong):
    """Nearly all gradients are larger than all that are sampled, or the large ones are nearly all sampled."""
    rows, columns = spread(rng), spread(rng)
    if wrong == "too many":
        for side, firsts in zip((rows, columns), zip(*SAMPLED, strict=True), strict=True):
            small = np.isin(np.arange(SIDE) // 32 * 32, firsts)
            side[~small] *= 1024
        held, gradients, pruned = planted(rows, columns, density=-1.0)
        assert (abs(gradients) > 1).sum() > 1 << 16
        check_topk(scheduled, held, gradients, pruned, (1000,))
        return
    rows[160:192] *= 1024
    columns[64:96] *= 1024
    held, gradients, pruned = planted(rows, columns)
    check_topk(scheduled, held, gradients, pruned, (2000,))


@pytest.mark.parametrize("misled", [False, True])
def test_a_weight_whose_sums_are_not_left_in_memory(shim, rng, misled):
    """Of more than 264 tiles: each step computes them again."""
    rows, columns = spread(rng, 8), spread(rng, 28_000)
    if misled:
        number, sampled = np.arange(28_000) // 96, np.arange(0, 292, 16)
        sampled += sampled // 16 * 7 % np.minimum(16, 292 - sampled)
        columns[~np.isin(number, sampled)] *= 1024
    held, gradients, pruned = planted(rows, columns)
    assert np.array_equal(dense_gradient(shim, held), gradients)
    check_topk(shim, held, gradients, pruned, (3000,))


def test_nothing_but_ties(scheduled):
    """The bound has to name a position: one value everywhere, or zeros of either sign beside a few others."""
    ones = np.ones(SIDE)
    held, gradients, pruned = planted(ones, -ones)
    check_topk(scheduled, held, gradients, pruned, (2500,))
    rows, columns = np.where(np.arange(SIDE) % 2, 0.0, -0.0), ones.copy()
    rows[7], columns[::2] = 1.0, -1.0
    held, gradients, pruned = planted(rows, columns)
    check_topk(scheduled, held, gradients, pruned, (1500,))


@pytest.mark.parametrize(
    ("dtype", "tf32"), [(FLOAT16, False), (FLOAT32, True), (FLOAT32, False)], ids=["float16", "tf32", "3xtf32"]
)
def test_numbers_that_are_none(shim, rng, dtype, tf32):
    """NaN comes first whatever its bits, infinities of either sign tie behind it. Three TF32 products make them NaN."""
    rows, columns = spread(rng), spread(rng)
    rows[[3, 200]], rows[[11, 150]] = np.nan, [np.inf, -np.inf]
    held, gradients, pruned = planted(rows, columns, dtype=dtype)
    if dtype == FLOAT32 and not tf32:
        gradients = np.where(np.isinf(gradients), np.nan, gradients)
    check_topk(shim, held, gradients, pruned, (900,), tf32=tf32)


def test_an_empty_batch(shim):
    product = one_case((5, 4, 3, 3), (0, 4, 6, 6), Geometry(padding=(1, 1)), density=0.2)
    held = replace(stored(one_case((5, 4, 3, 3), (1, 4, 6, 6), Geometry(padding=(1, 1)), density=0.2), FLOAT32))
    held = replace(held, shape=(0, *held.shape[1:]), x=held.x[:0], grad=held.grad[:0])
    assert not dense_gradient(shim, held).any()
    positions, gradients = topk_pruned(shim, held, 6)
    assert np.array_equal(positions, pruned_positions(product)[:6])
    assert not gradients.any()


def test_memory_grows_with_k_alone(shim):
    """16 bytes for each of 4 k + 1024 entries, and a constant below 24 MB."""
    for size in (1024, 8192):
        shape = ConvShape(32, size, 1, 1, size, 1, 1, 1, 1, 0, 0, 1, 1, 1)
        for k in (1, 1000, 20000):
            asked = shim.value("fedsparse_cuda_topk_pruned_size", shape, FLOAT32, 0, k)
            assert asked < 16.3 * (4 * k + 1024) + 24e6


@pytest.mark.parametrize(
    ("sizes", "nnz", "k"),
    [
        ((1, 65536, 1, 1, 65536, 1, 1, 1, 1, 0, 0, 1, 1, 1), 0, 1),  # 2^32 positions
        ((1 << 27, 4, 1, 1, 4, 1, 1, 1, 1, 0, 0, 1, 1, 1), 0, 1),  # 2^27 samples
        ((1, 4, 300, 300, 4, 3, 3, 1, 1, 0, 0, 100, 100, 1), 0, 1),  # a channel of a slab of 208 x 204 pixels
        ((1, 4, 1, 1, 4, 1, 1, 1, 1, 0, 0, 1, 1, 1), 10, 7),  # more than are pruned
    ],
)
def test_refusals(shim, sizes, nnz, k):
    shape, nothing = ConvShape(*sizes), poisoned(1, np.float32)
    assert shim.value("fedsparse_cuda_topk_pruned_size", shape, FLOAT32, nnz, k) == 0
    rows, operands = (nothing, nothing, True), (nothing, nothing)
    arguments = (shape, FLOAT32, False, nnz, *rows, *operands, k, nothing, nothing, nothing, None)
    assert shim.value("fedsparse_cuda_topk_pruned", *arguments) == 1


def test_wide_columns(shim, rng):
    """Rows of 2^16 columns and more are listed with 32 bits."""
    columns = 65600
    case = Case((2, columns), (1, columns), 0)
    mask = torch.from_numpy(rng.random((2, columns)) < 0.6)
    pattern = Pattern.from_mask(mask)
    product = ProductCase(replace(case, nnz=pattern.nnz), pattern, False, 1)
    held = stored(product, FLOAT32)
    assert held.column.dtype == np.int32
    gradients = dense_gradient(shim, held)
    check_gradient(product, held, gradients)
    check_topk(shim, held, gradients, pruned_positions(product), (5000,))
