"""The tests of the CUDA kernels can fail: each of these small changes to one makes its check fail.

A wrong distance, a weight left out, a barrier that is missing. Without a barrier results are right in some orders of
threads: that one of the schedules shows it is why there are several.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.cuda import shim as shim_build
from tests.cuda import (
    test_block,
    test_block_rebuild,
    test_csr16,
    test_lists,
    test_prune,
    test_rebuild,
    test_sap,
    test_topk,
)
from tests.cuda.conftest import SCHEDULES
from tests.cuda.products import BFLOAT16, FLOAT32
from tests.cuda.selection import dense_gradient
from tests.cuda.shim import LaunchError, Shim

KERNELS = shim_build.ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Mutation:
    """A change to one source, and the check that has to find it.

    Attributes:
        source: file in csrc/cuda.
        before, after: text that occurs there once, and what takes its place.
        check: raises where a result is wrong.
        unit: the source that includes it and is compiled, where it is a header.
    """

    source: str
    before: str
    after: str
    check: Callable[[Shim], object]
    unit: str = ""


def unstructured(shim: Shim) -> None:
    test_csr16.check(shim, test_csr16.SPECIAL["several tiles, slabs and row blocks"])


def strips(shim: Shim) -> None:
    test_block.check(shim, test_block.CASES["blocks of 32, several slabs"], BFLOAT16)


def several_strips(shim: Shim) -> None:
    test_block.check(shim, test_block.CASES["strips of three blocks, two passes"], BFLOAT16)


def strided_strips(shim: Shim) -> None:
    test_block.check(shim, test_block.CASES["strides"], BFLOAT16)


def values_alone(shim: Shim) -> None:
    test_block.test_a_gradient_alone_is_what_it_is_beside_the_other(shim, "strides")


def wide_strips(shim: Shim) -> None:
    test_block.check(shim, test_block.CASES["vectors of 16"], FLOAT32)


def largest(shim: Shim) -> None:
    product = test_csr16.SPECIAL["groups of row blocks"]
    held, pruned = test_csr16.stored(product, FLOAT32), test_topk.pruned_positions(product)
    gradients = dense_gradient(shim, held)
    test_topk.check_gradient(product, held, gradients)
    test_topk.check_topk(shim, held, gradients, pruned, (len(pruned) // 2,))


def smallest(shim: Shim) -> None:
    test_prune.check(shim, test_prune.normal(np.random.default_rng(0), 3000, 700), [1200, 50])


def rows_packed(shim: Shim) -> None:
    test_sap.test_the_ends_of_rows_count(shim)


def taps_listed(shim: Shim) -> None:
    for number, name in enumerate(("several tiles, slabs and row blocks", "more taps than a warp stages", "depthwise")):
        test_lists.check(shim, test_lists.of_taps(number, test_csr16.SPECIAL[name]))


def lines_listed(shim: Shim) -> None:
    names = "blocks of 32, several slabs", "vectors of 8"
    test_lists.check(
        shim, [one for n, name in enumerate(names) for one in test_lists.of_strips(shim, n, test_block.CASES[name])]
    )


def rebuilt(shim: Shim) -> None:
    rng = np.random.default_rng(0)
    patterns = test_rebuild.drawn(rng)
    changed = [test_rebuild.changes(rng, pattern)[1] for pattern in patterns]
    test_rebuild.check_exchange(shim, patterns, changed)
    test_rebuild.check_lists(shim, patterns)
    test_rebuild.check_carry(shim, rng, patterns, changed)


def growth(shim: Shim) -> None:
    test_rebuild.test_what_cannot_be_grown(shim, np.random.default_rng(0))


MUTATIONS = {
    "csr16: a distance off by one": Mutation(
        "csr16_gather.cu", "g.offset[at] * kBatch", "max(g.offset[at] - 1, 0) * kBatch", unstructured
    ),
    "csr16: a tap dropped": Mutation(
        "csr16_gather.cu", "count = min(32, last - base)", "count = min(32, last - base) - 1", unstructured
    ),
    "csr16: a slab overwritten while it is read": Mutation(
        "csr16_gather.cu", "if (s > 0) __syncthreads();", "", unstructured
    ),
    "csr16: a tap of the weight gradient dropped": Mutation(
        "csr16_weight_gradient.cu", "if (t >= count) continue;", "if (t + 1 >= count) continue;", unstructured
    ),
    "strips: a slab read before it has arrived": Mutation(
        "block_gather.cu", "__syncthreads();  // this slab has arrived", "// this slab has arrived", strips
    ),
    "strips: a chunk of lines dropped": Mutation(
        "block_gather.cu", "left = (last - first) *", "left = (last - first - 1) *", strips
    ),
    "strips: a warp's second strip computed from the first one's lines": Mutation(
        "block_gather.cu", "entry + i * problem.slabs + s", "entry + s", several_strips
    ),
    "strips: residues of a strided gradient computed from the tiles of others": Mutation(
        "block_gather.cu", "tile - g.grids.before(which)", "tile", strided_strips
    ),
    "strips: sums of the weight gradient's parts left out": Mutation(
        "block_gather.cu", "blockIdx.x - g.multiplying,", "blockIdx.x - g.multiplying + 1,", strided_strips
    ),
    "strips: values packed behind those of another block": Mutation(
        "block_weight_gradient.cu", "blockIdx.x - c.multiplying,", "blockIdx.x - c.multiplying + 1,", strided_strips
    ),
    "strips: the weight gradient of all strips of a block from the first one's slopes": Mutation(
        "block_weight_gradient.cu", "slopes + duty.strip *", "slopes + 0 *", several_strips
    ),
    "strips: a second pass of the weight gradient left out": Mutation(
        "block_weight_gradient.cu", "pass * most", "0 * pass * most", several_strips
    ),
    "strips: two pixels of the weight gradient left out": Mutation(
        "block_weight_gradient.cu", "pair = teams.part; duty", "pair = teams.part + 1; duty", wide_strips
    ),
    "strips: sums written over a tile that is still read": Mutation(
        "block_correlation.cuh", "__syncthreads();  // the tile has been read,", "//", wide_strips,
        "block_weight_gradient.cu",
    ),
    "strips: the last part of the weight gradient not added": Mutation(
        "sums.cuh", "split < s.splits", "split + 1 < s.splits", values_alone, "sums.cu"
    ),
    "lists: weights of one warp put over those of another": Mutation(
        "csr16_rebuild.cu", "place += here", "place += 0 * here", taps_listed
    ),
    "lists: slabs in another order": Mutation(
        "csr16_rebuild.cu", "* l.slabs + part.slab", "* l.slabs + (l.slabs - 1 - part.slab)", taps_listed
    ),
    "lists: the last count left out": Mutation(
        "lists.cu", "= first + i < entries ?", "= first + i + 1 < entries ?", taps_listed
    ),
    "lists: places read before all are there": Mutation(
        "block_rebuild.cu", "  }\n  __syncthreads();\n  weights.each(", "  }\n  weights.each(", lines_listed
    ),
    "rebuild: a row begins where nothing has grown": Mutation(
        "rebuild.cu", "begin - drop.first + grow.first", "begin - drop.first + 0 * grow.first", rebuilt
    ),
    "rebuild: entries not moved behind the grown ones before them": Mutation(
        "rebuild.cu", "i - d + grow.before(e.grown, base + at)", "i - d + grow.first", rebuilt
    ),
    "rebuild: the last row has no end": Mutation("rebuild.cu", "if (row + 1 == e.old.rows)", "if (false)", rebuilt),
    "rebuild: kept positions may be grown": Mutation("rebuild.cu", "faults |= kKept", "faults |= 0 * kKept", growth),
    "rebuild: a position may be grown twice": Mutation(
        "rebuild.cu", "at <= g.positions[i - 1]", "at < g.positions[i - 1]", growth
    ),
    "carry: grown values taken from somewhere": Mutation(
        "carry.cu", "c.old.column[found] == at;", "c.old.column[found] >= at;", rebuilt
    ),
    "by input: places read before all marks are there": Mutation(
        "by_input.cu", "__syncthreads();  // all marks are there", "", rebuilt
    ),
    "by input: what columns before keep left out": Mutation(
        "by_input.cu", "base = kept_before(t, first)", "base = 0 * kept_before(t, first)", rebuilt
    ),
    "by input: every tile of rows put where the first one is": Mutation(
        "by_input.cu", "base += here", "base += 0 * here", test_rebuild.test_rows_by_the_tile
    ),
    "strips: an input that differs passed over": Mutation(
        "block_strips.cu", "if (inputs_alike > 0 &&", "if (inputs_alike > kWidest &&",
        lambda shim: test_block_rebuild.test_strips_of_rows_and_of_inputs(shim, torch.Generator().manual_seed(0)),
    ),
    "topk: columns that a tile does not have searched as well": Mutation(
        "topk.cu", "area.column + column) | outside", "area.column + column) | 0 * outside", largest
    ),
    "topk: kept positions searched as well": Mutation("topk.cu", "bits |= 1u <<", "bits |= 0u <<", largest),
    "dense gradient: sums left at the wrong column": Mutation(
        "dense_gradient.cu", "s.words * kWord + column]", "s.words * kWord + (column ^ 1)]", largest
    ),
    "rows: numbers before the first whole piece left out": Mutation(
        "activation_rows.cu", "rest = size - pieces * kPiece,", "rest = size - pieces * kPiece - head,", rows_packed
    ),
    "prune: places counted over all layers": Mutation(
        "prune.cu", "out[to] = i - start", "out[to] = i - 0 * start", smallest
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_to_a_kernel_fails_its_check(shim, tmp_path, name):
    mutation = MUTATIONS[name]
    text = (KERNELS / mutation.source).read_text(encoding="utf-8")
    assert text.count(mutation.before) == 1, f"{mutation.source} has changed: {mutation.before!r} is not there once"
    changed = text.replace(mutation.before, mutation.after)
    (tmp_path / mutation.source).write_text(changed, encoding="utf-8")
    unit = KERNELS / (mutation.unit or mutation.source)
    if mutation.unit:  # finds the header beside it; objects are kept by the text of their source
        told = f"// {mutation.source}: {zlib.crc32(changed.encode())}\n"
        (tmp_path / unit.name).write_text(unit.read_text(encoding="utf-8") + told, encoding="utf-8")
    kernels = Shim(shim_build.build(instead={unit: tmp_path / unit.name}))
    mutation.check(shim)
    with pytest.raises((AssertionError, LaunchError)):  # noqa: PT012 (any of the schedules)
        for seed in SCHEDULES:
            kernels.seed(seed)
            mutation.check(kernels)
