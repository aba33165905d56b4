"""Kernels besides the products and of whole steps, against counts made by hand."""

from dataclasses import replace

import pytest

from benchmarks.gpu.activation_work import dense_pack, pack_global, pack_rows, pack_short_rows
from benchmarks.gpu.cases import OPS, PASSES
from benchmarks.gpu.estimates import CALL, StepEstimate, besides, limit, steps
from benchmarks.gpu.kinds import KINDS
from benchmarks.gpu.norm_work import ALONE_BACK, ALONE_FORWARD, norm, parts
from benchmarks.gpu.occupancy import issued, starved, unevenly
from benchmarks.gpu.prune_work import dense_prune, lists, prune, rebuild
from benchmarks.gpu.regrow_work import dense_regrow, regrow
from benchmarks.gpu.roofline import Work, dense_work, seconds
from benchmarks.gpu.step_work import convolutions, dense_step, folded, sparse_step
from benchmarks.gpu.torch_work import passed, tiny, topk
from fedsparse.bench.cases import LayerCase

# 64 channels of 32x32, batch 32: 2,097,152 numbers in and out, 36,864 weights, sums of 32,768 terms.
CASE = LayerCase(64, 64, 32, batch=32)
LAUNCH = 2e-6  # seconds


# ---- what does not fill the device
def test_few_blocks_cost_as_much_as_the_busiest_multiprocessor():
    assert unevenly(264.0, 264) == 264
    assert unevenly(1.0, 1) == 132
    assert unevenly(288.0, 288) == 3 * 132  # two for most, three for some
    assert issued(10) == 20


def test_a_path_that_waits_for_answers_moves_less():
    # 100 bytes a second and 2 seconds until an answer: 200 bytes fill the path
    assert starved(1000, 50, 2.0, 100.0) == 4000
    assert starved(1000, 300, 2.0, 100.0) == 1000


# ---- torch
def test_selection_of_one_long_row_by_hand():
    """36,864 numbers of 4 bytes, 369 wanted: four digits in three launches each, a pass to gather, and five small."""
    works = topk(1, 36_864, 369, 4)
    assert len(works) == 1 + 4 * 3 + 4 + 1
    moved = [work.memory for work in works if work.memory]
    assert moved == [147_456] * 4 + [147_456 + 369 * 12]
    assert len(topk(1, 36_864, 369, 2)) == 12  # two digits


def test_a_short_row_is_selected_by_one_block():
    """8,192 numbers: 16 digits of 2 bits and two passes more, of which 4 KB are under way at a time."""
    (work,) = topk(1, 8_192, 10, 4)
    assert work.memory == 32_768 + 120
    # 5.5 TB/s for 0.15 us are 825,000 bytes
    assert work.cache == pytest.approx(18 * 32_768 * 825_000 / 4096)
    assert len(topk(128, 8_192, 10, 4)) == 18, "of a hundred rows those of 5,000 are long"
    assert len(topk(128, 4_096, 10, 4)) == 1


# ---- regrow
def test_regrow_of_a_small_weight_by_hand():
    """Two tiles of 64 x 288 positions: all counted, then those within the bound listed, and ranked."""
    works = regrow(CASE, 369, "bf16")
    assert len(works) == 6
    products, counted, _, listed, ranked = works[1:]
    # Tiles of two images of 4x4 pixels, 2 * 64 of them, each a split: 256 blocks, two on the busiest of 132
    # multiprocessors. The 18 chunks of 32 channels are shared by four warps of five chunks, for 64 rows.
    multiplied, uneven = 2 * 320 * 64 * 32_768, 2 * 132 / 256
    assert products.flops == pytest.approx(2 * multiplied * uneven)
    # 32 channels of two images of 6x6 lines of 16 bytes, and 64 of 32 lines
    staged = 2 * 128 * (32 * 72 * 16 + 64 * 32 * 16)
    assert products.cache == pytest.approx(staged * uneven)
    assert products.shared == pytest.approx((2 * multiplied * (1 / 32 + 1 / 80) + staged) * uneven)
    assert products.memory == 2 * 2 * 2_097_152 + 4 * 256 * 64 * 288
    assert counted.memory == listed.memory == 4 * 36_864 * 128
    # 738 entries are 24 blocks on 132 multiprocessors, four instructions for each pair
    assert ranked.flops == pytest.approx(2 * 4 * 738**2 * 132 / 24)
    assert ranked.memory == 738 * 8 + 369 * 12


def test_few_positions_are_all_listed():
    """1,024 positions: begun, products, listed, and all ranked."""
    _, _, listed, ranked = regrow(LayerCase(32, 32, None, batch=32), 10, "fp32")
    assert listed.memory == 4 * 1024  # one tile of samples, so one part
    assert ranked.memory == 1024 * 8 + 10 * 12


def test_regrow_of_a_weight_that_is_searched_by_hand():
    """147,456 positions in 18 bits, keys of 49: five digits to search by, seven to sort more than 3,840 by."""
    works = regrow(LayerCase(128, 128, 16, batch=32), 3841, "fp32")
    assert len(works) == 5 + (2 * 5 + 1) + 2 * 7 + 1 == 31
    assert len(regrow(LayerCase(128, 128, 16, batch=32), 3840, "fp32")) == 5 + (2 * 5 + 1) + 1
    # 16 tiles of 64 x 144, tiles of 4x8 pixels: eight of each of four images, in 16 splits
    products, sample, _, listed = works[1:5]
    # nine chunks, shared by two warps of five, twice over the pixels; three products of TF32
    assert products.flops == pytest.approx(6 * 16 * 160 * 64 * 8192 * 2 * 132 / 256)
    assert products.shared > 4 * 16 * 160 * 64 * 8192 * (1 / 32 + 1 / 80)
    assert (sample.memory, listed.memory) == (4 * 147_456, 16 * 4 * 147_456)
    assert [work.memory for work in works[16:30]] == [4 * 8 * 3841] * 14
    assert works[30].memory == 3841 * (8 + 12)
    assert regrow(LayerCase(128, 128, 16, batch=32), 3841, "tf32")[1].flops == pytest.approx(products.flops / 3)


def test_regrow_computes_tiles_of_a_large_weight_for_each_step():
    lines = LayerCase(4096, 4096, None, batch=256)
    _, sample, _, listed, *_ = regrow(lines, 100, "fp32")
    # 64 times 43 tiles of 64 x 96; six chunks for two warps; two tiles of 16 lines
    assert listed.flops == pytest.approx(6 * 2752 * 96 * 64 * 256 * 21 * 132 / 2752)
    assert sample.flops == pytest.approx(6 * 172 * 96 * 64 * 256 * 2 * 132 / 172)
    assert listed.memory == 4 * 2 * 4096 * 256


def test_regrow_turns_what_fills_no_lines():
    works = regrow(replace(CASE, batch=12), 369, "bf16")
    assert len(works) == 6 + 2
    assert [work.memory for work in works[:2]] == [2 * 2 * 16 * 65_536] * 2


def test_dense_regrow_by_hand():
    product, masked, magnitudes, *selected, found = dense_regrow(CASE, 369, "fp32")
    assert [product] == dense_work(CASE, "grad_w", "fp32")
    assert (masked.memory, magnitudes.memory) == (36_864 * 9, 36_864 * 8)
    assert selected == topk(1, 36_864, 369, 4)
    assert found.memory == 369 * 16


def test_regrow_takes_longer_for_more():
    times = [seconds(regrow(replace(CASE, batch=batch), 369, "fp32")) for batch in (32, 64, 128, 256)]
    assert times == sorted(times)
    assert times[-1] > 4 * times[0]


# ---- prune
def test_prune_by_hand():
    """A million weights of 4 bytes: three digits of two launches, counted, summed, listed; begun by one."""
    works = prune(1_000_000)
    assert len(works) == 10
    assert [work.memory for work in works if work.memory] == [4e6] * 5
    assert works[1].flops == 2 * 16 * 1_000_000
    assert seconds(works) == pytest.approx(9 * LAUNCH + 2 * 55.5e6 / 52e12)  # the last has 55.5 instructions a weight


def test_rebuild_and_lists_by_hand():
    rows, by_input, carried = rebuild([4_000_000, 6_000_000], 0.1)  # as many launches for any number of layers
    assert rows.memory == 10_000_000 * (2 + 2) + 2 * 8 * 1_000_000
    assert by_input.memory == 10_000_000 * (2 * 2 + 2 * 2)
    assert carried.memory == 10_000_000 * (2 * 2 + 2 * 2 * 4)
    found, counted, added, listed = lists([1_000_000] * 19)
    assert (found.memory, counted.memory, added) == (19e6 * 2, 19e6 * 2 * 2, passed(0))
    assert listed.memory == 19e6 * 2 * (2 + 4)


def test_dense_prune_by_hand():
    works = dense_prune([1_000_000], 0.1, 0.1)
    assert len(works) == 2 + 18 + 4 + 2
    assert [work.memory for work in works[:2]] == [8e6, 9e6]
    assert [work.memory for work in works[-6:]] == [2e6, 9e4, 2e6, 9e4, 9e6, 9e6]


# ---- activations
def test_packed_rows_by_hand():
    """128 rows of 65,536 float32: a block a row, of which 2 MB are under way, where 1,485,000 bytes would do."""
    cut, mark, total, starts, packed = pack_rows(128, 65_536, 0.5, "fp32")
    n = 8_388_608
    assert cut.memory == 4 * n
    assert cut.flops == pytest.approx(2 * 3 * 19.1 * n * 132 / 128)
    assert cut.cache == 3 * 4 * n
    # of eight rows 131,072 are
    assert pack_rows(8, 65_536, 0.5, "fp32")[0].cache == pytest.approx(n / 4 * (1_485_000 + 2 * 825_000) / 131_072)
    assert (mark.memory, packed.memory) == (n * 4.125, n * 5.125)
    assert [total, starts] == tiny(2)
    assert limit([cut]) == ("arithmetic", 1.0)


def test_other_ways_to_pack_by_hand():
    n = 128 * 8192
    assert len(pack_global(n, 0.5, "fp32")) == 1 + 3 * 2 + 2 + 1 + 2 + 1
    assert len(pack_global(n, 0.5, "bf16")) == 11
    cut, *others = pack_short_rows(128, 8192, 0.5, "bf16")
    assert cut.flops == pytest.approx(2 * 113 * n * 132 / 128)
    assert (cut.memory, len(others)) == (2 * n, 5)
    magnitudes, *selected, gathered, stored = dense_pack(128, 8192, 0.5, "bf16")
    assert magnitudes.memory == 4 * n
    assert selected == topk(128, 8192, 4096, 2)
    assert (gathered.memory, stored.memory) == (n / 2 * 12, n / 2 * 4)


@pytest.mark.parametrize("pack", [pack_rows, dense_pack])
def test_packing_takes_longer_for_more(pack):
    times = [seconds(pack(128, size, 0.5, "fp32")) for size in (8_192, 32_768, 131_072)]
    assert times == sorted(times)
    shares = [seconds(pack(128, 131_072, keep, "fp32")) for keep in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares)


# ---- steps
def test_a_dense_step_by_hand():
    cases = list(convolutions(32))
    assert len(cases) == 19
    works = dense_step(32, "bf16")
    # 19 convolutions and the stem, 20 norms, 17 ReLUs, 16 sums, ends, and an optimiser over 62 tensors
    assert len(works) == 57 + 2 + 20 * 5 + 17 * 2 + 16 + 4 + 12 + 3
    assert works[:3] == [work for op in OPS for work in dense_work(cases[0], op, "bf16")]
    # stem and 4 of 2,097,152 numbers, then 5 each of a half, a quarter, an eighth
    numbers = 2_097_152 * (5 + 2.5 + 1.25 + 0.625)
    # sums of gradients: 2 of the first stage's size; of the others one of their own and one of what they read
    sums = works[59:67]
    assert sum(work.memory for work in sums) == pytest.approx(2 * 3 * 2_097_152 * (2 + 1.5 + 0.75 + 0.375))
    # ResNet-18 has 11,173,962 parameters
    assert sum(work.memory for work in works[83:86]) == pytest.approx(8 * 2 * 11_173_962)
    norms, sums, relus = works[86:186], works[186:194], works[194:]
    assert sum(work.memory for work in norms) == pytest.approx(2 * 8 * numbers)
    assert sum(work.memory for work in sums) == pytest.approx(2 * 3 * 2_097_152 * 2 * (1 + 0.5 + 0.25 + 0.125))
    assert sum(work.memory for work in relus) == pytest.approx(2 * 5 * 2_097_152 * (5 + 2 + 1 + 0.5))


def test_a_dense_step_with_fused_norms_has_the_same_products():
    plain, fused = dense_step(32, "bf16"), dense_step(32, "bf16", fused=True)
    shared = 57 + 2 + 8 + 16 + 3  # products, the stem's, sums of gradients, ends, optimiser
    assert fused[:shared] == plain[:shared]
    assert len(fused) == shared + 5 * 4 + 15 * 3
    assert seconds(fused) < seconds(plain)


def test_a_sparse_step_has_other_products_other_norms_and_a_smaller_optimiser():
    kind = next(kind for kind in KINDS if kind.name == "block:16/cuda")
    works, dense = sparse_step(32, "bf16", 0.1, kind.work), dense_step(32, "bf16")
    products = [work for case in convolutions(32) for op in PASSES for work in kind.work(case, op, 1, "bf16")]
    # 5 norms of channels of 32,768 numbers take two launches back, 15 one; ReLUs and residual sums take none
    norms = 5 * 4 + 15 * 3
    assert len(works) - len(products) - 3 - norms == len(dense) - 57 - 20 * 5 - 17 * 2 - 8
    assert [work.memory for work in works[len(products) :][:3]] == [2 * 2 * 2_097_152] * 3
    # a tenth of 11,157,504 weights, and all else there is
    optimiser = works[-norms - 3 : -norms]
    assert sum(work.memory for work in optimiser) == pytest.approx(8 * 2 * (1_115_750 + 16_458), abs=16 * 19)


# ---- norms
def test_a_short_norm_by_hand():
    """128 channels of 8192 numbers in 16 bits, 2 MB: summed, normalised, and all at once going back."""
    summed, normal, back = norm(128, 8192, 2)
    moved = 2 * 128 * 8192  # bytes
    assert [work.memory for work in (summed, normal, back)] == [moved, 2 * moved, 3 * moved]
    # Two steps of 4096 numbers are under way in each program: 2 MB, more than the 1,485,000 bytes that are needed.
    assert [work.cache for work in (summed, back)] == [moved, 4 * moved]
    assert back.flops == 2 * 39 * 128 * 8192 * 132 / 128
    assert seconds([summed]) == seconds([normal]) == seconds([back]) == LAUNCH
    # Of eight channels all are under way, and all wait for 0.27 us of 5.5 TB/s.
    assert norm(8, 8192, 2)[0].cache == pytest.approx(1_485_000)


def test_a_long_norm_by_hand():
    """64 channels of 131,072 numbers in float32, 34 MB: in four parts each, whose sums are merged or read again."""
    works, moved = norm(64, 131_072, 4), 4 * 64 * 131_072
    assert [work.memory for work in works] == [moved, 0, 2 * moved, 2 * moved, 3 * moved]
    # One program a channel where there are enough of them; the second time, 67 MB are not in the cache.
    works = norm(512, 32_768, 2)
    assert [work.memory for work in works] == [moved, 2 * moved, 5 * moved]


def test_norms_are_cut_as_the_kernels_cut_them():
    pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")
    from fedsparse.kernels import batch_norm, batch_norm_backward
    from fedsparse.kernels import channels as cuts

    assert (ALONE_FORWARD, ALONE_BACK) == (batch_norm.ALONE, batch_norm_backward.ALONE)
    for channels in (1, 16, 64, 100, 128, 133, 264, 512, 4096):
        for count in (2, 1024, 4097, ALONE_BACK, ALONE_BACK + 1, ALONE_FORWARD, ALONE_FORWARD + 1, 131_072, 1 << 20):
            for alone in (0, ALONE_FORWARD, ALONE_BACK):
                assert parts(channels, count, alone) == cuts.cut_for(channels, count, alone).parts


def test_a_norm_with_a_sum_by_hand():
    """Behind it are read what is added, and written 32,768 words of bits."""
    _, normal, back = norm(128, 8192, 2, summed=True)
    moved, bits = 2 * 128 * 8192, 4 * 32_768
    assert normal.memory == 3 * moved + bits
    assert back.memory == 4 * moved + bits
    assert back.cache == 2 * (2 * moved + bits)


def test_folded_clients_share_launches():
    works = [Work(8.0, "fp32", 4.0, 2.0, 1.0), passed(0)]
    first, second = folded(works, 8)
    assert first == Work(64.0, "fp32", 32.0, 16.0, 8.0)
    assert seconds([second]) == LAUNCH
    count = next(kind for kind in KINDS if kind.name == "block:16/cuda").work
    alone, together = (sparse_step(32, "bf16", 0.1, count, clients) for clients in (1, 8))
    # 512 channels in place of 64 are not cut: the first stage's five norms take a launch less.
    assert len(alone) - len(together) == 5
    assert sum(work.memory for work in together) == pytest.approx(8 * sum(w.memory for w in alone), rel=0.05)
    one = StepEstimate("", 32, works, tiny(10), clients=8)
    assert one.dense_eager == pytest.approx(8 * 10 * CALL)


def test_every_figure_that_is_wanted_has_an_estimate():
    wanted = [one.what.split(",")[0].split(" 1")[0] for one in besides() if one.wanted]
    assert {"regrow", "prune + rebuild + lists of strips", "pack"} == set(wanted)
    found = [(one.wanted, one.clients) for one in steps() if one.what == "block:16/cuda bf16 density 0.1"]
    assert found == [((2.5, 8.0), 1), ((5.0, None), 8), ((None, None), 1)]
