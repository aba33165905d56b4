"""Lists of many patterns made at once against those of the host, and how many launches that takes."""

from itertools import pairwise

import numpy as np
import pytest

from fedsparse.backends import Geometry
from fedsparse.testing import product_cases
from tests.cuda.conftest import SCHEDULES
from tests.cuda.products import BFLOAT16, FLOAT16, FLOAT32, ConvShape, Product
from tests.cuda.selection import ListOf, lines_of, make_lists, new_lists, widest_strips
from tests.cuda.shim import Shim
from tests.cuda.test_block import CASES
from tests.cuda.test_block_rebuild import AWKWARD
from tests.cuda.test_csr16 import SPECIAL, one_case, stored

DTYPES = (FLOAT32, BFLOAT16, FLOAT16)


def of_taps(number: int, product) -> list[ListOf]:
    held = stored(product, DTYPES[number % 3])
    return [ListOf(held, backward, 0) for backward in (False, True)]


def of_strips(shim: Shim, number: int, case) -> list[ListOf]:
    held = case.stored(DTYPES[number % 3])
    return [lines_of(shim, held, backward) for backward in (False, True)]


def check(shim: Shim, wanted: list[ListOf]) -> None:
    """The same bytes as on the host."""
    for one, found in zip(wanted, make_lists(shim, wanted), strict=True):
        product, backward, width, _ = one
        host = product.lines(shim, backward=backward) if width else product.list(shim, backward)
        for ours, theirs in zip(found, host, strict=True):
            assert np.array_equal(ours[: len(theirs)], theirs)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lists_of_every_kind_in_one_table(shim, schedule):
    """Groups, strides, dilations, rows and slabs that keep nothing or all, in an order that mixes the kinds."""
    rng = np.random.default_rng(schedule)
    wanted = [one for n, product in enumerate(SPECIAL.values()) for one in of_taps(n + schedule, product)]
    wanted += [one for n, product in enumerate(product_cases(rng, 8)) for one in of_taps(n + schedule, product)]
    cases = (*CASES.values(), *AWKWARD.values())
    wanted += [one for n, case in enumerate(cases) for one in of_strips(shim, n + schedule, case)]
    shim.seed(schedule)
    before = shim.launches
    check(shim, [wanted[i] for i in rng.permutation(len(wanted))])
    assert shim.launches - before == 5
    shim.seed(0)


def test_launches_do_not_follow_the_number_of_lists(shim):
    strips = of_strips(shim, 0, CASES["vectors of 8"])
    taps = of_taps(0, SPECIAL["dense"])
    launches = {
        0: [[]],
        1: [taps[:1], taps[:1] * 7],  # in the order of the values already
        3: [strips[:1], strips * 6, taps[1:], taps * 6],
        5: [strips[:1] + taps[1:], (strips + taps) * 9],
    }
    for count, batches in launches.items():
        for batch in batches:
            before = shim.launches
            check(shim, batch)
            assert shim.launches - before == count


def test_strips_of_all_patterns_in_one_launch(scheduled):
    cases = [*CASES.values(), *AWKWARD.values()]
    held = [case.stored(FLOAT16) for case in cases]
    alone = [widest_strips(scheduled, one)[0].tolist() for one in held]
    before = scheduled.launches
    assert widest_strips(scheduled, *held).tolist() == alone
    assert scheduled.launches - before == 1
    assert len({tuple(pair) for pair in alone}) > 4


def test_large_kernels(shim):
    """Of 65 positions along an axis, of which the device once refused to make lists."""
    product = one_case((9, 3, 65, 1), (2, 3, 70, 2), Geometry((2, 1)), density=0.3)
    for number in range(3):
        check(shim, of_taps(number, product))


def test_forward_lists_without_values(shim):
    wanted = of_taps(0, SPECIAL["groups of row blocks"])[:1]
    ((start, offset, value),) = make_lists(shim, wanted, with_values=False)
    theirs = wanted[0].product.list(shim, False)
    assert np.array_equal(start, theirs[0])
    assert np.array_equal(offset, theirs[1])
    assert value.size == 0


@pytest.mark.parametrize("width", [4, 24, 64])
def test_refused_lists(shim, width):
    """Strips of other widths, and shapes that the products refuse; nothing is launched."""
    held = stored(CASES["dense"].product, FLOAT32)
    wide = Product(**{**vars(held), "shape": (1, 2, 64, 64, 2, 60, 60, 1, 1, 0, 0, 1, 1, 1)})
    good = ListOf(held, True, 0)
    for refused in (ListOf(held, False, width), ListOf(wide, False, 0), ListOf(wide, True, 8)):
        for wanted in ([refused], [good, refused]):
            tasks = new_lists(wanted)
            table = np.zeros(shim.value("fedsparse_lists_table_size", len(wanted), tasks), np.uint8)
            assert shim.value("fedsparse_lists_table", len(wanted), tasks, table, table) == 1


def test_more_than_one_tile_of_counts(shim):
    """The sum of the counts takes several turns of its block, in the second list, whose entries follow the first."""
    held = of_taps(1, one_case((40, 2600), (1, 2600), density=0.3))
    check(shim, held)
    starts = [len(start) for start, *_ in make_lists(shim, held)]
    assert starts[1] > 2048
    assert all(before != after for before, after in pairwise(starts))


def test_the_batch_of_a_shape_does_not_matter(shim):
    held = stored(SPECIAL["a batch of several tiles"], FLOAT32)
    other = Product(**{**vars(held), "shape": (8, *held.shape[1:])})
    assert ConvShape(*other.shape).batch == 8
    for backward in (False, True):
        found = make_lists(shim, [ListOf(held, backward, 0), ListOf(other, backward, 0)])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
