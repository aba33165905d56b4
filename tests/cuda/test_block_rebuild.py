"""Lists of strips made on the device against those that the host makes by sorting, under every schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, product_cases
from tests.cuda.block_products import BlockProduct
from tests.cuda.conftest import SCHEDULES
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, ConvShape
from tests.cuda.selection import line_list, widest_strips
from tests.cuda.shim import LaunchError
from tests.cuda.test_block import CASES, SAME, block, structured_mask, vector
from tests.cuda.test_csr16 import SPECIAL, stored

DTYPES = (FLOAT32, BFLOAT16, FLOAT16)
# Beside those whose products are computed: what a list alone has to get right.
AWKWARD = {
    "short strips of both kinds": block(16, (37, 43, 3, 3), (2, 43, 6, 7), SAME, density=0.3),
    "short strips of groups": vector(8, (20, 11, 2, 3), (1, 22, 7, 5), Geometry((2, 1), (1, 2), groups=2)),
    "more than 65535 columns": block(8, (8, 1100, 8, 8), (1, 1100, 9, 9), Geometry(), density=0.01),
    "colours that run out": vector(8, (8, 90, 1, 1), (1, 90, 3, 3), Geometry(), density=0.2),
    "padding beyond the picture": block(8, (16, 9, 3, 5), (1, 9, 2, 1), Geometry((2, 3), (5, 4), (2, 1)), density=0.5),
}  # fmt: skip


def check(shim, held: BlockProduct, backward: bool) -> None:
    """The same bytes, in no less room than they take."""
    wanted, found = held.lines(shim, backward=backward), line_list(shim, held, backward)
    chunks = wanted.chunks
    assert found.chunks == chunks
    assert len(found.offset) >= chunks * 16
    assert np.array_equal(found.start, wanted.start)
    assert np.array_equal(found.offset[: len(wanted.offset)], wanted.offset)
    assert np.array_equal(found.value[: len(wanted.value)], wanted.value)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lists_are_those_of_the_host(shim, schedule, backward):
    """Under every schedule, and so in every storage."""
    shim.seed(schedule)
    for number, case in enumerate((*CASES.values(), *AWKWARD.values())):
        check(shim, case.stored(DTYPES[(number + schedule) % 3]), backward)
    shim.seed(0)


def test_unions_of_any_mask(scheduled):
    """Strips of inputs in every width, of masks without a structure."""
    products = [*product_cases(np.random.default_rng(3), 12), *SPECIAL.values()]
    for number, product in enumerate(products):
        held = BlockProduct(**vars(stored(product, DTYPES[number % 3])), widths=(8, (8, 16, 32)[number // 3 % 3]))
        check(scheduled, held, True)


def test_many_lists(shim):
    """Entries that keep nothing are passed over; the sum of the counts takes more than one turn."""
    held = block(8, (2400 * 8, 8, 1, 1), (1, 2400 * 8, 1, 1), Geometry(groups=2400), density=0.5).stored(FLOAT16)
    assert len(held.lines(shim, backward=False).start) > 2048
    check(shim, held, False)


def test_a_list_serves_every_batch(shim):
    held = CASES["a linear layer of blocks of 32"].stored(FLOAT32)
    for backward in (False, True):
        small = line_list(shim, replace(held, shape=(1, *held.shape[1:])), backward)
        for array, other in zip(line_list(shim, held, backward), small, strict=True):
            assert np.array_equal(array, other)


def test_lists_of_blocks_are_no_larger_than_they_have_to_be(shim):
    """Lines come in runs of 16: no chunk is begun in vain."""
    held = CASES["blocks of 16, several tiles"].stored(FLOAT16)
    for backward in (False, True):
        found = line_list(shim, held, backward)
        assert len(found.offset) == 16 * found.chunks == len(held.values) // 16


@pytest.mark.parametrize("name", ["vectors of 16", "strides", "short strips of both kinds"])
def test_room_stays_while_units_move(shim, name):
    """As many weights elsewhere have lists of the same sizes, however many chunks they need."""
    case = {**CASES, **AWKWARD}[name]
    held, mask = case.stored(FLOAT16), case.product.pattern.mask()
    moved = Pattern.from_mask(mask.roll(1, -1))
    other = replace(held, row_start=moved.row_start.numpy(), column=moved.column.numpy())
    for backward in (False, True):
        sizes = [[len(array) for array in line_list(shim, one, backward)] for one in (held, other)]
        assert sizes[0] == sizes[1]
        check(shim, other, backward)


# ---- which strips there are


def width(shim, product: ProductCase, *, backward: bool, dtype: int = FLOAT16) -> int:
    """As decided from what the device finds; the reference looks at the pattern itself."""
    held = stored(product, dtype)
    shape = ConvShape(*held.shape)
    wanted = shim.value("reference_block_width", shape, backward, dtype, held.view)
    found = shim.value("fedsparse_block_width", shape, backward, dtype, *widest_strips(shim, held)[0].tolist())
    assert found == wanted
    return found


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("blocks of 16, several tiles", (16, 16)),
        ("blocks of 32, several slabs", (32, 32)),
        ("vectors of 32, several slabs", (32, 16)),
        ("vectors of 8", (8, 16)),
        ("one input", (32, 8)),
        ("groups", (16, 16)),
        ("channels that no strip divides", (0, 0)),  # 20 outputs of a group: a strip would reach into the next
    ],
)
def test_structures_are_recognised(scheduled, name, widths):
    product = CASES[name].product
    assert tuple(width(scheduled, product, backward=backward) for backward in (False, True)) == widths


def test_what_is_recognised_is_what_a_look_at_the_pattern_finds(shim):
    shim.seed(1)
    products = [*product_cases(np.random.default_rng(5), 30), *(case.product for case in CASES.values())]
    for number, product in enumerate((*products, *SPECIAL.values())):
        for backward in (False, True):
            width(shim, product, backward=backward, dtype=DTYPES[number % 3])
    shim.seed(0)


def one_pattern(mask) -> ProductCase:
    pattern = Pattern.from_mask(mask)
    return ProductCase(Case(tuple(mask.shape), (3, mask.shape[1]), pattern.nnz), pattern, False, 0)


def alike(mask) -> list[int]:
    """Widest strips of rows and of inputs in which all are equal; 0 where those of 8 are not."""

    def widest(dense) -> int:
        def equal(width: int) -> bool:
            return all(bool((strip == strip[:1]).all()) for strip in dense.split(width))

        return max((width for width in (8, 16, 32) if equal(width)), default=0)

    return [widest(mask), widest(mask.transpose(0, 1))]


def test_strips_of_rows_and_of_inputs(scheduled, generator):
    """Each structure whole, and with one weight changed wherever that may be missed."""
    for shape in ((64, 40), (40, 19), (10, 64), (7, 5)):
        for unit in ((8, 1), (16, 32), (1, 8), (32, 16), (3, 16), (40, 40)):
            mask = structured_mask(shape, 1, unit, 0.5, sum(unit))
            broken = mask.clone().view(-1)
            broken[int(torch.randint(mask.numel(), (), generator=generator))] ^= True
            for one in (mask, broken.view(shape), torch.zeros_like(mask), torch.ones_like(mask)):
                assert widest_strips(scheduled, stored(one_pattern(one), FLOAT16)).tolist() == [alike(one)]


def test_a_single_weight_breaks_a_structure(shim):
    mask = structured_mask((32, 20), 1, (16, 1), 0.5, 0)
    assert width(shim, one_pattern(mask), backward=False) == 16
    mask[21, 7] ^= True
    assert width(shim, one_pattern(mask), backward=False) == 0
    broken = BlockProduct(**vars(stored(one_pattern(mask), FLOAT16)), widths=(16, 16))
    with pytest.raises(LaunchError, match="invalid argument"):
        broken.lines(shim, backward=False)


def test_last_strips_may_be_short(shim):
    """Ten classes: a strip of 16, of which ten rows are used; four would leave most of any strip idle."""
    assert width(shim, one_pattern(torch.ones(10, 20, dtype=torch.bool)), backward=False) == 16
    assert width(shim, one_pattern(torch.ones(4, 20, dtype=torch.bool)), backward=False) == 0


# ---- refusals


@pytest.mark.parametrize("wanted", [0, 4, 24, 64])
def test_other_widths_are_refused(shim, wanted):
    held = stored(CASES["dense"].product, FLOAT16)
    problem = ConvShape(*held.shape), False, FLOAT16, wanted
    assert shim.value("fedsparse_block_start_size", *problem) == 0
    assert shim.value("fedsparse_block_room", *problem, len(held.values), 32, 32) == 0


def test_what_does_not_fit_is_refused(shim):
    """One channel of a kernel of 60 by 60 and one of zeros need twice 63 x 63 lines."""
    wide = ConvShape(1, 8, 64, 64, 8, 60, 60, 1, 1, 0, 0, 1, 1, 1)
    assert shim.value("fedsparse_block_start_size", wide, False, FLOAT16, 8) == 0
    assert shim.value("fedsparse_block_partial_size", wide, FLOAT16, 8, 5) == 0
    assert shim.value("fedsparse_block_width", wide, False, FLOAT16, 32, 32) == 0
