"""The roofline model against a case computed by hand, ratios, and the tables."""

from dataclasses import replace

import pytest

from benchmarks import gpu_table
from benchmarks.gpu.cases import COUNTS, OPS, PASSES
from benchmarks.gpu.kinds import KINDS
from benchmarks.gpu.ratios import estimated, measured, network
from benchmarks.gpu.record import RunRecord, StageRecord, write
from benchmarks.gpu.roofline import H200, Machine, Work, dense_work, seconds
from benchmarks.gpu.sweep import row_of
from benchmarks.gpu.table import markdown
from benchmarks.gpu.work import csr16, strips
from fedsparse.bench.cases import POINTWISE, STRIDED, SYMMETRIC, LayerCase

KIND = next(kind for kind in KINDS if kind.name == "element/cuda")
# 64 channels of 32x32, batch 32: 2,097,152 numbers in and out, 36,864 weights, 1,207,959,552 dense multiply-adds.
CASE = LayerCase(64, 64, 32, batch=32, density=0.1)
NNZ = 3686


# ---- the model
def test_dense_work_by_hand():
    (work,) = dense_work(CASE, "forward", "bf16")
    assert work.flops == 2 * 1_207_959_552 == 2_415_919_104
    assert work.memory == 2 * (2 * 2_097_152 + 36_864) == 8_462_336
    # 2.42 GFLOP at 40 % of 780 TFLOP/s are 7.74 us, 8.5 MB at 4.3 TB/s 1.97 us
    assert seconds([work]) == pytest.approx(2_415_919_104 / 312e12)
    assert seconds(dense_work(CASE, "grad_x", "fp32")) == pytest.approx(2_415_919_104 / 41.6e12)


def test_csr16_work_by_hand():
    """Forward in float32; activations lie batch-innermost already."""
    (product,) = csr16(CASE, "forward", NNZ, "fp32")
    assert product.shared == 4 * NNZ * 32 * 1024 == 483_131_392
    assert product.flops == 2 * NNZ * 32 * 1024 == 241_565_696
    assert product.memory == 4 * (2 * 2_097_152 + NNZ) + 2 * NNZ == 16_799_332
    # 16 tiles of 10x10 pixels, 64 channels, 4 groups of 8 samples, two blocks of 32 channels, 32 bytes a line
    assert product.cache == 16 * 100 * 64 * 4 * 2 * 32 == 26_214_400
    # 483 MB of shared memory at 65 % of 29.7 TB/s take 25.0 us, more than 4.6 us of arithmetic and 3.9 us of traffic
    assert seconds([product]) == pytest.approx(483_131_392 / (0.65 * 29.7e12)) == pytest.approx(25.0e-6, rel=2e-3)
    gradient, back = csr16(CASE, "backward", NNZ, "fp32")
    # 16 tiles of 4 groups of samples, each a part, of which two blocks of rows leave their sums
    assert gradient == replace(product, cache=product.cache + 4 * 64 * NNZ)
    # which value each tap has; sums of the parts, each a gradient
    assert (back.flops, back.shared) == (product.flops, product.shared)
    assert back.memory == product.memory + 4 * NNZ + 4 * NNZ
    assert back.cache == gradient.cache


def test_a_batch_of_no_whole_lines_is_turned_and_computed_whole():
    """9 samples: two lines each of 64 channels of 32x32, 1,048,576 numbers either side."""
    odd = replace(CASE, batch=9)
    into, out_of, product = csr16(odd, "forward", NNZ, "fp32")
    assert into.memory == out_of.memory == 2 * 4 * 1_048_576 == 8_388_608
    assert product.flops == 2 * NNZ * 16 * 1024
    assert seconds([into]) == pytest.approx(2e-6)  # 1.95 us at 4.3 TB/s: the shortest kernel takes longer
    turned = csr16(replace(odd, outputs=128), "backward", NNZ, "bf16")[:3]  # the gradient in, the input in and out
    assert [work.memory for work in turned] == [2 * 2 * 2_097_152, 2 * 2 * 1_048_576, 2 * 2 * 1_048_576]


def test_strips_by_hand():
    """Blocks of 16 in bfloat16: 120,782,848 products, of which 16 share a line and 64 a warp's weight."""
    pack, product = strips(16, inputs_alike=True)(CASE, "forward", NNZ, "bf16")
    assert pack.memory == NNZ * (2 + 2 + 4) == 29_488
    assert product.flops == 2 * NNZ * 32 * 1024 == 241_565_696
    assert product.shared == 2 * NNZ * 32 * 1024 / 16 == 15_097_856
    # weights for each warp; 64 tiles that reach 6x6 pixels, 2 pairs of 16 samples, 64 channels, all targets a block
    assert product.cache == 2 * NNZ * 32 * 1024 / 64 + 64 * 36 * 2 * 64 * 32 == 3_774_464 + 9_437_184
    assert product.memory == 2 * (2 * 2_097_152 + NNZ) == 8_395_980
    # 13 MB at 5.5 TB/s take 2.40 us, more than 1.95 us for 8.4 MB at 4.3; packing takes the 2 us of the shortest kernel
    assert seconds([pack, product]) == pytest.approx(2e-6 + 13_211_648 / 5.5e12)
    gradient, back = strips(16, inputs_alike=True)(CASE, "backward", NNZ, "bf16")
    # 56 KiB have room for 48 of the 64 channels: two slabs, so that 132 parts would fill a device; of 128 tiles.
    left = 4 * 128 * NNZ
    assert gradient.cache == 9_437_184 + left  # four strips a block
    assert gradient.shared == product.shared + 2 * NNZ * 32 * 1024 / 128  # a line of grad_y for 128 of x
    assert (gradient.flops, gradient.memory) == (product.flops, product.memory + pack.memory)
    assert (back.flops, back.shared) == (product.flops, product.shared)
    assert back.cache == product.cache + left
    assert back.memory == product.memory + NNZ * (4 + 2)  # where a sum goes, the value's gradient


def test_slabs_of_strides_small_pictures_and_linear_layers():
    """Groups of 8 samples, 16 strips of 16 channels; bytes of what blocks read."""
    count = strips(16, inputs_alike=True)
    strided = LayerCase(32, 256, 16, stride=2, batch=8)
    (_, forward), (_, back) = (count(strided, op, 0, "bf16") for op in ("forward", "backward"))
    # 4 tiles of 4x4 outputs reach 9x9 inputs; half of each sector is wasted; 128 channels a block
    assert forward.cache == 2 * 32 * 4 * 9**2 * 32
    # four residues of 8x8 pixels; along an axis the taps of one reach 5 outputs, those of the other 4; one block
    assert back.cache == 256 * 4 * (5 + 4) ** 2 * 32
    (_, small) = count(LayerCase(32, 256, 4, batch=16), "forward", 0, "bf16")
    assert small.cache == 2 * 32 * 6**2 * 32  # both groups in one tile
    (_, linear) = count(LayerCase(96, 256, None, batch=16), "forward", 0, "bf16")
    assert linear.cache == 96 * 16 * 2
    # in float32 tiles of 4x8 pixels, or 4x4 where 17 channels of what a larger one reaches do not fit; 256 a block
    (_, wide), (_, narrow) = (count(replace(strided, stride=stride), "forward", 0, "tf32") for stride in (1, 2))
    assert wide.cache == 2 * 32 * 8 * (6 * 10) * 32
    assert narrow.cache == 32 * 4 * 9**2 * 32


def test_residues_without_taps_read_nothing():
    case = LayerCase(16, 16, 8, stride=2, kernel=1, batch=8)
    (_, back) = strips(16, inputs_alike=True)(case, "backward", 0, "tf32")
    assert back.cache == 16 * 4**2 * 32


def test_three_products_keep_float32_and_unions_widen_vectors():
    count = strips(32, inputs_alike=False)
    fast, exact = (count(CASE, "forward", NNZ, precision)[-1] for precision in ("tf32", "fp32"))
    assert (exact.flops, exact.precision, exact.shared) == (3 * fast.flops, "tf32", fast.shared)
    # a tenth of the columns: 1 - 0.9^16 = 0.8147 of the lines, 8.15 times the products; strips of 16 share them
    back = count(CASE, "backward", NNZ, "tf32")[-1]
    assert back.flops / fast.flops == pytest.approx(0.8147 / 0.1, rel=1e-3)
    assert back.shared / fast.shared == pytest.approx(2 * 0.8147 / 0.1, rel=1e-3)
    assert strips(32, inputs_alike=True)(CASE, "backward", NNZ, "tf32")[-1].flops == fast.flops


def test_a_kernel_takes_the_longest_of_five():
    machine = Machine({"fp32": 100.0}, 10.0, 20.0, 5.0, 2.0, {"fp32": 0.5}, 0.1, 0.8)
    assert seconds([Work(1, "fp32", 0, 0)], machine) == 2
    assert seconds([Work(500, "fp32", 0, 0)], machine) == 10
    assert seconds([Work(500, "fp32", 0, 0, by="cores")], machine) == 5
    assert seconds([Work(500, "fp32", 0, 0, by="mma")], machine) == pytest.approx(500 / (100 * 0.8 * 0.1))
    assert seconds([Work(0, "fp32", 7, 0)], machine) == 7
    assert seconds([Work(0, "fp32", 0, 0, 60)], machine) == 3
    assert seconds([Work(0, "fp32", 0, 40), Work(0, "fp32", 0, 0)], machine) == 8 + 2


def test_estimates_of_unstructured_weights_are_those_of_the_design():
    """Its table has 1.7 to 2.3 for float32 against float32 at density 0.1 and batch 128."""
    cases = [replace(case, batch=128) for case in (*SYMMETRIC, *STRIDED, *POINTWISE)]
    (whole,) = (one for one in network(estimated(KIND, cases, [0.1])) if (one.precision, one.compared) == ("fp32",) * 2)
    assert 1.7 < whole.graph < 2.6
    assert whole.source == "estimated"


# ---- ratios
def timed(median):
    return {"median": median, "low": median, "high": median}


def rows(case, *, dense=(8.0, 6.0), ours=2.0, precision="fp32"):
    """Two dense variants whose ops differ in which is best, and one of ours."""
    found = [
        {"who": "dense", "layer": row_of(replace(case, density=1.0)), "op": op, "precision": precision, "variant": name,
         "graph": timed(seconds if op != "grad_w" else 7.0), "eager": timed(10.0)}
        for op in OPS
        for name, seconds in zip(("nchw", "channels_last"), dense, strict=True)
    ]  # fmt: skip
    mine = [
        {"who": KIND.name, "layer": row_of(case), "op": op, "precision": precision, "nnz": 1, "graph": timed(ours),
         "eager": timed(4.0)}
        for op in PASSES
    ]  # fmt: skip
    return found, mine


def test_the_best_variant_of_every_op_is_what_counts():
    dense, ours = rows(CASE)
    one, unmeasured = measured(dense, ours)
    assert (unmeasured.compared, unmeasured.graph, unmeasured.ours) == ("tf32", None, 4.0)
    assert one.graph == pytest.approx((6 + 6 + 7) / 4)
    assert one.eager == pytest.approx(30 / 8)
    assert (one.ours, one.compared, one.source) == (4.0, "fp32", "measured")


def test_float32_is_also_held_against_tf32():
    dense, ours = rows(CASE)
    more, _ = rows(CASE, dense=(2.0, 1.0), precision="tf32")
    found = {one.compared: one.graph for one in measured([*dense, *more], ours)}
    assert found == {"fp32": pytest.approx(19 / 4), "tf32": pytest.approx((1 + 1 + 7) / 4)}


def test_an_op_that_was_not_timed_leaves_no_ratio():
    dense, ours = rows(CASE)
    ours[1] |= {"graph": None, "eager": None, "wrong": "relative error 1e-1"}
    (one,) = (one for one in measured(dense, ours) if one.compared == "fp32")
    assert (one.graph, one.eager, one.ours) == (None, None, None)


def test_layers_of_the_network_count_as_often_as_they_occur():
    everything = [replace(case, batch=32) for case in (*SYMMETRIC, *STRIDED, *POINTWISE)]
    dense, ours = [], []
    for place, case in enumerate(everything):
        more, mine = rows(case, dense=(1.0, 3.0), ours=1.0 + place)
        dense += more
        ours += mine
    (whole,) = (one for one in network(measured(dense, ours)) if one.compared == "fp32")
    counts = [COUNTS[case.shape] for case in everything]
    assert sum(counts) == 19
    mine = sum(2 * (1 + place) * count for place, count in enumerate(counts))
    assert whole.ours == pytest.approx(mine)
    assert whole.graph == pytest.approx(19 * (1 + 1 + 7) / mine)
    assert network(measured(dense, ours[:-2])) == []  # a layer is missing


# ---- tables
def test_without_a_run_every_figure_is_an_estimate(capsys):
    assert gpu_table.main([]) == 0
    printed = capsys.readouterr().out
    assert "none of them measured" in printed
    lines = [line for line in printed.splitlines() if line.startswith("| ") and "---" not in line]
    figures = [line for line in lines if not line.endswith("| source |")]
    assert len(figures) > 60
    assert all(line.endswith("| estimated |") for line in figures)
    assert f"{H200.memory / 1e12:g} TB/s" in printed


def test_a_run_becomes_tables(tmp_path, capsys):
    dense, ours = rows(CASE)
    ours += [{**ours[0], "layer": row_of(replace(CASE, density=0.5)), "wrong": "relative error 1", "graph": None,
              "eager": None}]  # fmt: skip
    step = {"who": "dense", "variant": "nchw", "op": "step", "precision": "bf16", "batch": 32, "device": "cuda",
            "density": 1.0, "clients": 1, "eager": timed(4e-3), "graph": timed(2e-3), "peak_bytes": 5e6}  # fmt: skip
    mine = {**step, "who": KIND.name, "variant": "", "density": 0.1, "graph": timed(1e-3), "peak_bytes": None}
    mine["saved_bytes"] = 7e6
    folded = {**mine, "variant": "folded", "clients": 8, "graph": timed(4e-3)}
    stages = [
        StageRecord("ceilings", "done", rows=[{"what": "GEMM", "seconds": timed(1.0), "rate": 7.8e14, "unit": "FLOP/s"},
                                              {"what": "empty", "seconds": timed(1), "rate": 5e5, "unit": "1/s"}]),
        StageRecord("dense", "done", rows=dense),
        StageRecord("ours", "timeout", "ended | after\n5 s", rows=ours, notes=["3 cases were not reached"]),
        StageRecord("step", "done", rows=[step, mine, folded]),
        StageRecord("counters", "cut", "2 s were left"),
    ]  # fmt: skip
    path = tmp_path / "run.json"
    write(RunRecord("2026-01-01T00:00:00+00:00", ["--budget", "5"], 5, False, stages, marked=["a mark"]), path)
    assert gpu_table.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "**Marked: a mark.**" in printed
    assert "| GEMM | 780 TFLOP/s | measured |" in printed
    assert "| empty | 2.00 us each | measured |" in printed
    assert f"| {CASE.shape} | 32 | element/cuda | fp32 | fp32 | - | 4.75 (3.75) | measured |" in printed
    assert "| ours | timeout | 0 of 0 | 3 | ended \\| after 5 s | 3 cases were not reached |" in printed
    assert "| counters | cut | 0 of 0 | 0 | 2 s were left |  |" in printed
    assert "relative error 1 |" in printed
    name = "element/cuda  bf16 density 0.1 | 32"
    assert "density 0.1, 8 clients | 32 | 4.00 [4.00, 4.00] | 4.00 [4.00, 4.00] | 4.00 | 8.00 | - | 7 |" in printed
    assert f"| {name} | 1.00 [1.00, 1.00] | 4.00 [4.00, 4.00] | 2.00 | 1.00 | - | 7 | measured |" in printed


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    assert gpu_table.main([str(tmp_path / "x.json")]) == 2
    assert "is no record of format 1" in capsys.readouterr().err
    assert markdown([]).startswith("### Estimates")
