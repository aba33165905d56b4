"""Every backend against dense float64, twice, on any number of threads, and from several threads at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsparse import _native
from fedsparse.backends import Case, Geometry
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.reference import ReferenceBackend
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_backend, product_cases

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CPU = [CpuBackend(isa) for isa in _native.instruction_sets()]
EVERY = [*CPU, MaskedBackend(), ReferenceBackend()]


def label(backend):
    return f"{backend.name}-{backend.isa}" if isinstance(backend, CpuBackend) else backend.name


def run(backend, product: ProductCase, *, want=(True, True)) -> list[torch.Tensor]:
    """Every result of one product."""
    x, values, bias, grad = product.operands()
    pattern, case = product.pattern, product.case
    k = (pattern.size - pattern.nnz) // 3
    results = [
        backend.forward(x, values, pattern, bias, case),
        *backend.backward(grad, x, values, pattern, want, case),
        *backend.topk_pruned(grad, x, pattern, k, case),
    ]
    return [tensor for tensor in results if tensor is not None]


def same_bits(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", CPU, ids=label)
def test_cpu_agrees_with_float64(backend, threads, rng):
    torch.set_num_threads(threads)
    for product in product_cases(rng, 150 if threads == 1 else 40):
        check_backend(backend, product)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("backend", [MaskedBackend(), ReferenceBackend()], ids=label)
def test_torch_backends_agree_with_float64(backend, dtype, tolerance, rng):
    torch.set_num_threads(1)
    for product in product_cases(rng, 90, dtype=dtype):
        check_backend(backend, product, tolerance=tolerance)


@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_same_bits_twice(backend, rng):
    torch.set_num_threads(2 if backend.name == "cpu" else 1)
    for product in product_cases(rng, 60):
        assert same_bits(run(backend, product), run(backend, product)), product


@pytest.mark.parametrize("backend", CPU, ids=label)
def test_same_bits_on_any_number_of_threads(backend, rng):
    """Outputs and input gradients never depend on the number of threads, value gradients in narrow layers only.

    Where there are under 4 input channels a thread, sums over pixels are cut into as many stripes as threads.
    """
    narrow = 0
    for product in product_cases(rng, 60):
        inputs = product.case.input[1]
        torch.set_num_threads(1)
        alone = run(backend, product)
        torch.set_num_threads(2)
        shared = run(backend, product)
        assert same_bits(alone[:2], shared[:2]), product
        if inputs >= 4 * 2:
            assert same_bits(alone, shared), product
        else:
            narrow += 1
            torch.testing.assert_close(shared[2], alone[2], rtol=1e-4, atol=1e-4)
    assert 0 < narrow < 60


@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_many_callers_at_once(backend, rng):
    torch.set_num_threads(1)
    products = list(product_cases(rng, 24))
    alone = [run(backend, product) for product in products]
    # The number of threads is one per caller; torch's dense products depend on it.
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(lambda product: run(backend, product), products * 3))
    assert all(same_bits(a, b) for a, b in zip(alone * 3, together, strict=True))


@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_operands_are_left_alone(backend, rng):
    for product in product_cases(rng, 12):
        operands, pattern, case = product.operands(), product.pattern, product.case
        x, values, bias, grad = operands
        backend.forward(x, values, pattern, bias, case)
        backend.backward(grad, x, values, pattern, (True, True), case)
        backend.topk_pruned(grad, x, pattern, 1 if pattern.nnz < pattern.size else 0, case)
        for after, before in zip(operands, product.operands(), strict=True):
            assert (after is None and before is None) or torch.equal(after, before)


def _one_case(shape, size, geometry=None, *, density=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < density)
    return ProductCase(Case(shape, size, pattern.nnz, geometry), pattern, True, seed)


SAME = Geometry(padding=(1, 1))
SPECIAL = {
    "many chunks of pruned positions": _one_case((96, 2000), (5, 2000)),
    "over 65,536 columns": _one_case((3, 70_001), (2, 70_001), density=0.01),
    "over 65,536 rows times taps": _one_case((8_000, 1, 3, 3), (1, 1, 4, 4), SAME, density=0.05),
    "over 65,536 kept in one row": _one_case((2, 70_001), (1, 70_001), density=0.96),
    "blocks of source channels": _one_case((40, 64, 3, 3), (3, 64, 6, 6), SAME, density=0.3),
    "one row of pixels": _one_case((4, 3, 1, 7), (2, 3, 1, 50), Geometry(padding=(0, 3)), density=0.5),
    "pixels that no tap meets": _one_case((3, 2, 1, 1), (2, 2, 9, 10), Geometry(stride=(3, 4)), density=0.5),
    "one tile of 4x4": _one_case((40, 30, 3, 3), (33, 30, 4, 4), SAME, density=0.3),
    "one tile of 2x4": _one_case((24, 30, 3, 3), (9, 30, 2, 4), SAME, density=0.3),
    "one tile in blocks": _one_case((9, 150, 3, 3), (16, 150, 4, 4), SAME, density=0.9),
    "one tile in groups": _one_case((12, 5, 3, 3), (16, 20, 4, 4), Geometry(padding=(1, 1), groups=4), density=0.5),
    "one tile read one pixel outside on one side": _one_case(
        (5, 6, 2, 3), (16, 6, 4, 5), Geometry(padding=(1, 0)), density=0.6
    ),
    "one tile read far outside": _one_case((6, 4, 5, 5), (7, 4, 4, 4), Geometry(padding=(2, 2)), density=0.5),
    "one tile, dilated": _one_case((6, 4, 3, 3), (7, 4, 4, 4), Geometry((1, 1), (2, 2), (2, 2)), density=0.5),
    "four classes of one tile": _one_case((6, 4, 3, 3), (16, 4, 8, 8), Geometry((2, 2), (1, 1)), density=0.5),
    "nearly all border": _one_case((3, 2, 3, 3), (17, 2, 1, 1), Geometry((1, 1), (5, 4), (2, 3)), density=0.5),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_special_sizes(backend, name):
    check_backend(backend, SPECIAL[name])


@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_nan_gradients_come_first(backend):
    """As in a stable sort of the dense gradient: NaN is the largest, then by magnitude, ties by position."""
    pattern = Pattern.from_mask(torch.tensor([[True, False, False, False], [False, False, True, False]]))
    case = Case((2, 4), (1, 4), pattern.nnz)
    x = torch.tensor([[1.0, -2.0, float("nan"), 2.0]])
    grad = torch.tensor([[3.0, -3.0]])
    positions, gradients = backend.topk_pruned(grad, x, pattern, 5, case)
    assert positions.tolist() == [2, 1, 3, 5, 7]
    assert gradients[0].isnan()
    assert gradients[1:].tolist() == [-6.0, 6.0, 6.0, -6.0]


@pytest.mark.parametrize("backend", EVERY, ids=label)
def test_pruned_inputs_are_never_touched(backend):
    """An infinite input that no kept weight reads leaves the output finite; a dense product gives NaN."""
    if backend.name == "masked":
        pytest.skip("masked computes the dense product")
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[:, 7] = False
    pattern = Pattern.from_mask(mask)
    x = torch.ones(4, 20)
    x[:, 7] = float("inf")
    y = backend.forward(x, torch.ones(pattern.nnz), pattern, None, Case((3, 20), (4, 20), pattern.nnz))
    assert torch.equal(y, torch.full((4, 3), 19.0))


class Wrong:
    """A backend whose results pass through `spoil` one at a time."""

    name = "wrong"

    def __init__(self, spoil, which):
        self.spoil, self.which, self.right = spoil, which, ReferenceBackend()

    def refuse(self, case):
        return self.right.refuse(case)

    def forward(self, *arguments):
        y = self.right.forward(*arguments)
        return self.spoil(y) if self.which == "output" else y

    def backward(self, *arguments):
        found = self.right.backward(*arguments)
        if self.which not in found._fields or getattr(found, self.which) is None:
            return found
        return found._replace(**{self.which: self.spoil(getattr(found, self.which))})

    def topk_pruned(self, *arguments):
        positions, gradients = self.right.topk_pruned(*arguments)
        if self.which == "positions" and len(positions) > 1:
            order = torch.sort(gradients.abs(), descending=True).indices.flip(0)
            return positions[order], gradients[order]
        return positions, self.spoil(gradients) if self.which == "gradients" else gradients


def _one_off(tensor):
    tensor = tensor.clone()
    if tensor.numel():
        tensor.view(-1)[tensor.numel() // 2] += 1
    return tensor


@pytest.mark.parametrize("which", ["output", "x", "values", "positions", "gradients"])
def test_the_check_notices(which, rng):
    """One wrong number is noticed in every case that has such a number."""
    torch.set_num_threads(1)
    caught = 0
    for product in product_cases(rng, 20):
        try:
            check_backend(Wrong(_one_off, which), product)
        except AssertionError:
            caught += 1
    assert caught >= (20 if which in ("output", "x") else 8)


@pytest.mark.parametrize("spoil", [lambda t: t.double(), lambda t: t * float("nan"), lambda t: t[None]])
def test_the_check_notices_dtype_nan_and_shape(spoil):
    with pytest.raises(AssertionError, match=r"dtype|off by inf|expected shape"):
        check_backend(Wrong(spoil, "output"), _one_case((3, 4), (2, 4), density=0.5))


def test_memory_that_is_never_written_shows():
    with pytest.raises(AssertionError, match="output is off by inf"):
        check_backend(Wrong(torch.empty_like, "output"), _one_case((3, 4), (2, 4), density=0.5))


def test_the_check_reports_a_refusal():
    product = _one_case((3, 4), (2, 4), density=0.5)
    double = replace(product, case=replace(product.case, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"cpu refuses linear .* compute float32"):
        check_backend(CPU[0], double)


def test_cases_follow_from_the_generator():
    first, second = (list(map(str, product_cases(np.random.default_rng(3), 30))) for _ in range(2))
    assert first == second
    assert len(set(first)) == 30


def test_cases_cover_what_they_promise():
    cases = [p.case for p in product_cases(np.random.default_rng(0), 400)]
    convolutions = [c for c in cases if c.geometry]
    assert {c.input[0] for c in convolutions} == {1, 7, 16, 33}
    assert {k for c in convolutions for k in c.shape[2:]} == {1, 2, 3, 5, 7}
    assert any(c.shape[2] != c.shape[3] for c in convolutions)
    assert any(c.shape[2:] == (1, 1) for c in convolutions)
    assert any(c.input[2:] == (1, 1) for c in convolutions)
    assert any(p > k for c in convolutions for p, k in zip(c.geometry.padding, c.shape[2:], strict=True))
    assert any(s > k for c in convolutions for s, k in zip(c.geometry.stride, c.shape[2:], strict=True))
    assert any(c.geometry.dilation != (1, 1) for c in convolutions)
    assert any(c.geometry.groups == c.input[1] > 1 for c in convolutions)
    assert any(1 < c.geometry.groups < c.input[1] for c in convolutions)
    assert {c.density for c in cases} >= {0.0, 1.0}
