"""Products of masks whose neighbouring channels are kept alike: the CPU kernels walk them in strips."""

from dataclasses import replace

import pytest
import torch

from fedsparse import _native
from fedsparse.backends import Case, Geometry
from fedsparse.backends.cpu import CpuBackend
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import parse
from fedsparse.testing import ProductCase, check_backend

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CPU = [CpuBackend(isa) for isa in _native.instruction_sets()]
SAME = Geometry(padding=(1, 1))


def structured(shape, granularity, density=0.4, seed=0):
    """A mask of whole units."""
    tiling = parse(granularity).tiling(shape)
    kept = torch.rand(tiling.count, generator=torch.Generator().manual_seed(seed)) < density
    return tiling.spread(kept).view(shape)


def product(mask, size, geometry=None, seed=0):
    pattern = Pattern.from_mask(mask)
    return ProductCase(Case(tuple(mask.shape), size, pattern.nnz, geometry), pattern, True, seed)


def mixed():
    """Rows of blocks, empty rows, and rows that nothing is like, in turn."""
    mask = structured((70, 24, 3, 3), "block:8", seed=1)
    mask[3], mask[20:23], mask[40] = False, False, True
    mask[50:53] = structured((3, 24, 3, 3), "element", seed=2)
    return mask


def scattered_rows():
    mask = structured((40, 9, 3, 3), "channel", 0.5)
    mask[:, :, 1] &= torch.arange(9)[:, None] < 5
    return mask


# Pictures of one tile, of several, and with remainders in both directions; strips that are full, ragged and single.
CONVOLUTIONS = {
    "vector:8": product(structured((32, 12, 3, 3), "vector:8"), (17, 12, 9, 10), SAME),
    "vector:16, ragged": product(structured((37, 12, 3, 3), "vector:16"), (16, 12, 8, 8), SAME),
    "vector:12": product(structured((36, 7, 3, 3), "vector:12"), (3, 7, 5, 7), SAME),
    "block:8": product(structured((24, 40, 3, 3), "block:8"), (16, 40, 8, 8), SAME),
    "block:16, ragged in both": product(structured((41, 43, 3, 3), "block:16"), (19, 43, 6, 11), SAME),
    "channel": product(structured((40, 9, 3, 3), "channel"), (16, 9, 12, 12), SAME),
    "channel, fewer taps": product(scattered_rows(), (16, 9, 12, 12), SAME),
    "everything is kept": product(torch.ones(19, 18, 3, 3, dtype=torch.bool), (16, 18, 7, 7), SAME),
    "nothing is kept": product(torch.zeros(16, 16, 3, 3, dtype=torch.bool), (16, 16, 7, 7), SAME),
    "mixed": product(mixed(), (18, 24, 9, 6), SAME),
    "one tile of 4x4": product(structured((40, 32, 3, 3), "block:16"), (33, 32, 4, 4), SAME),
    "one tile of 2x4": product(structured((24, 32, 3, 3), "block:8"), (9, 32, 2, 4), SAME),
    "one tile in blocks": product(structured((16, 704, 3, 3), "vector:16", 0.1), (16, 704, 4, 4), SAME),
    "blocks of source channels": product(structured((24, 352, 3, 3), "block:8", 0.1), (16, 352, 9, 9), SAME),
    "groups": product(structured((36, 8, 3, 3), "block:8"), (16, 24, 9, 9), replace(SAME, groups=3)),
    "stride 2": product(structured((32, 24, 3, 3), "block:8"), (16, 24, 16, 15), Geometry((2, 2), (1, 1))),
    "stride 3, no padding": product(structured((16, 16, 2, 3), "block:16"), (16, 16, 13, 12), Geometry((3, 1))),
    "dilated": product(structured((16, 16, 3, 3), "block:8"), (7, 16, 11, 9), Geometry((1, 1), (2, 2), (2, 2))),
    "1x1, stride 2": product(structured((32, 16, 1, 1), "block:16"), (16, 16, 8, 8), Geometry((2, 2))),
}


@pytest.mark.parametrize(
    ("name", "outputs", "inputs"),
    [
        ("vector:8", True, False),
        ("vector:16, ragged", True, False),
        ("block:8", True, True),
        ("block:16, ragged in both", True, True),
        ("everything is kept", True, True),
        ("nothing is kept", False, False),
        ("groups", True, True),
    ],
)
@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_strips_are_found_by_the_mask_alone(backend, name, outputs, inputs):
    one = CONVOLUTIONS[name]
    width = 8 if backend.isa == "avx512" else 4
    assert backend.strip_widths(one.pattern, one.case) == (width if outputs else 1, width if inputs else 1)


@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_strips_that_would_be_half_empty_are_not_taken(backend):
    one = CONVOLUTIONS["channel"]  # 9 inputs: two strips of 8 would hold 16 of them, three of 4 hold 12
    wide = backend.isa == "avx512"
    assert backend.strip_widths(one.pattern, one.case) == ((8, 1) if wide else (4, 4))


@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_a_mask_of_single_weights_has_no_strips(backend):
    one = product(structured((32, 24, 3, 3), "element"), (16, 24, 8, 8), SAME)
    assert backend.strip_widths(one.pattern, one.case) == (1, 1)
    linear = product(torch.ones(16, 16, dtype=torch.bool), (16, 16))
    assert backend.strip_widths(linear.pattern, linear.case) == (1, 1)


@pytest.mark.parametrize(
    ("saved", "shared"),
    [
        pytest.param((((1, 0, 0, False), False), (0, 0), (0, 0, 0, False)), True, id="whole"),
        pytest.param((((1, 0, 0, False), True), (0, 0), (0, 0, 0, False)), False, id="bfloat16"),
        pytest.param((((1, 0, 0, False), False), (1, 1), (0, 0, 0, False)), False, id="cut"),
        pytest.param((((0, 0, 0, False), False), (0, 0), (1, 1, 1, False)), False, id="packed"),
    ],
)
def test_what_is_expanded_first_is_walked_by_single_inputs(saved, shared):
    one, native = CONVOLUTIONS["block:8"], _native.extension()
    sizes = (*one.case.input, one.case.shape[0], 3, 3, 1, 1, 1, 1, 1, 1, 1)
    problem = native.conv2d_problem(next(iter(_native.instruction_sets())), one.pattern.view, sizes, 1, False)
    assert (native.backward_strips(problem, *saved, True).width > 1) == shared
    assert native.backward_strips(problem, *saved, False).width > 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_strips_agree_with_float64(backend, name, threads):
    torch.set_num_threads(threads)
    check_backend(backend, CONVOLUTIONS[name])


@pytest.mark.parametrize("name", ["block:16, ragged in both", "channel", "one tile of 4x4", "stride 2"])
@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_strips_of_bfloat16_agree_with_float64(backend, name):
    half = CONVOLUTIONS[name]
    half = replace(half, case=replace(half.case, dtype=torch.bfloat16))
    check_backend(backend, half, tolerance=2.0**-8)


@pytest.mark.parametrize("backend", CPU, ids=lambda backend: backend.isa)
def test_same_bits_on_any_number_of_threads(backend):
    one, case = CONVOLUTIONS["block:8"], CONVOLUTIONS["block:8"].case
    x, values, bias, grad = one.operands()
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        y = backend.forward(x, values, one.pattern, bias, case)
        found.append((y, *backend.backward(grad, x, values, one.pattern, (True, True), case)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("want", [(True, False), (False, True)])
def test_either_gradient_alone_is_that_of_both(want):
    torch.set_num_threads(1)
    one = CONVOLUTIONS["block:16, ragged in both"]
    x, values, _, grad = one.operands()
    both = CPU[0].backward(grad, x, values, one.pattern, (True, True), one.case)
    alone = CPU[0].backward(grad, x, values, one.pattern, want, one.case)
    for got, expected, wanted in zip(alone, both, want, strict=True):
        assert torch.equal(got, expected) if wanted else got is None
