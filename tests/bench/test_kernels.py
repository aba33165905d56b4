"""Layers in every engine: checked first, then timed."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fedsparse.bench import kernels
from fedsparse.bench.cases import LayerCase, Operands, at_densities
from fedsparse.bench.kernels import KernelSettings, break_even, crossing, geometric_means, measure, measure_case
from fedsparse.bench.peers import DENSE, PEERS, WAYS, FedsparseLayer, TorchDense
from fedsparse.errors import BackendError, ConfigError

TINY = (LayerCase(4, 6, 5), LayerCase(3, 4, 6, stride=2), LayerCase(7, 5, None))
SETTINGS = KernelSettings(cases=TINY, densities=(0.5, 0.2), batch=4, rounds=1, scanned=(0.5, 1.0))


# ---- cases
@pytest.mark.parametrize(
    ("case", "shape", "places"),
    [
        (LayerCase(64, 128, 32, stride=2), "conv3x3/2 64->128 32x32", 256),
        (LayerCase(64, 128, 5, kernel=1, stride=2), "conv1x1/2 64->128 5x5", 9),
        (LayerCase(8, 8, 7), "conv3x3/1 8->8 7x7", 49),
        (LayerCase(512, 10, None), "linear 512->10", 1),
    ],
)
def test_cases_name_and_count_their_products(case, shape, places):
    assert case.shape == shape
    assert str(case) == f"{shape} B64 d0.1"
    assert case.places == places == math.prod(case.layer()(torch.zeros(case.input_shape())).shape[2:])
    assert case.flops(10) == 2 * 10 * 64 * places * 3


def test_every_case_at_every_density():
    found = at_densities(TINY, (0.5, 1.0), batch=3)
    assert [(case.density, case.batch) for case in found] == [(0.5, 3)] * 3 + [(1.0, 3)] * 3
    for density in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"density = .*expected a share"):
            at_densities(TINY, (0.5, density), batch=3)
    with pytest.raises(ConfigError, match="batch = 0"):
        at_densities(TINY, (0.5,), batch=0)


# ---- peers
@pytest.mark.parametrize("engine", [*WAYS, *PEERS], ids=lambda engine: engine.name)
@pytest.mark.parametrize("case", at_densities(TINY, (0.3,), batch=16), ids=str)
def test_every_engine_computes_the_same(engine, case):
    reason = engine.available() or engine.refuse(case)
    if reason:
        pytest.skip(reason)
    operands = Operands(case)
    for trial in engine.build(operands).values():
        assert trial.results().error(operands.truth) < 1e-6
        trial()


@pytest.mark.usefixtures("only_torch")
def test_missing_packages_are_listed_with_a_reason():
    report = measure(SETTINGS)
    missing = {peer["name"]: peer["unavailable"] for peer in report.peers if peer["unavailable"]}
    assert missing == {
        "SparseProp": "sparseprop is not installed",
        "SparseLab": "sparselab is not installed",
    }
    assert "SparseLab: left out, sparselab is not installed" in report.notes()
    assert report.rows[0]["skipped"]["SparseProp"] == "sparseprop is not installed"
    assert report.rows[0]["skipped"]["torch.sparse CSR"] == "torch.sparse has no convolution"


# ---- what is wrong is not timed
class Wrong:
    """Doubles what another engine computes."""

    def __init__(self, engine):
        self.engine, self.name = engine, f"wrong {engine.name}"

    def available(self):
        return None

    def refuse(self, _case):
        return None

    def build(self, operands):
        doubled = Operands(operands.case)
        doubled.x = 2 * doubled.x
        return self.engine.build(doubled)


def test_a_wrong_peer_is_left_out_and_a_wrong_product_of_ours_is_an_error():
    case = replace(TINY[0], batch=4)
    row = measure_case(case, rounds=1, peers=[DENSE, Wrong(TorchDense())])
    assert set(row.ratios["fedsparse layer"]) == {"torch dense"}
    assert set(row.wrong) == {"wrong torch dense", "wrong torch dense channels_last"}
    assert row.skipped["wrong torch dense"].startswith("wrong answer: relative error")
    with pytest.raises(BackendError, match=r"wrong fedsparse layer cannot be timed on conv3x3/1 4->6 .*wrong answer"):
        measure_case(case, rounds=1, ways=[Wrong(FedsparseLayer())], peers=[DENSE])


class Broken(TorchDense):
    """Raises whatever it is asked."""

    name = "broken"

    def build(self, operands):
        raise OSError(f"no {operands.case.shape} here")


def test_a_peer_that_raises_is_left_out():
    row = measure_case(replace(TINY[2], batch=4), rounds=1, peers=[Broken(), DENSE])
    assert row.skipped == {"broken": "fails with OSError: no linear 7->5 here"}
    assert set(row.ratios["fedsparse layer"]) == {"torch dense"}


class Elsewhere(FedsparseLayer):
    """A way to use fedsparse that has convolutions alone."""

    name = "fedsparse elsewhere"

    def refuse(self, case):
        return None if case.size is not None else "no linear layers"


def test_every_way_to_use_fedsparse_is_measured_where_it_can_be(monkeypatch):
    monkeypatch.setattr(kernels, "WAYS", (*WAYS, Elsewhere()))
    ways = kernels.WAYS
    rows = [measure_case(replace(case, batch=4), rounds=1, peak=1e9, ways=ways, peers=[DENSE]) for case in TINY]
    assert [set(row.ratios) for row in rows] == [{way.name for way in ways}] * 2 + [{way.name for way in WAYS}]
    assert rows[2].skipped == {"fedsparse elsewhere": "no linear layers"}
    assert [mean["way"] for mean in geometric_means(rows)] == [way.name for way in ways]
    (table,) = kernels._row_tables(rows)
    assert table.rows[2][-3:] == ["-", "-", "-"]


# ---- the report
@pytest.fixture(scope="module")
def report():
    torch.set_num_threads(2)
    return measure(SETTINGS)


def test_json_holds_times_ratios_and_shares(report):
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["benchmark"] == "kernels"
    assert found["provenance"]["threads"] == 2
    assert found["provenance"]["torch"] == torch.__version__
    assert found["provenance"]["multiply_add_flops_per_second"] > 1e8
    assert found["settings"]["densities"] == [0.5, 0.2]
    assert [row["name"] for row in found["rows"]] == [str(case) for case in at_densities(TINY, (0.5, 0.2), batch=4)]
    row = found["rows"][0]
    assert {"fedsparse layer", "torch dense", "torch dense channels_last"} <= set(row["seconds"])
    best = min(row["seconds"][name]["median"] for name in ("torch dense", "torch dense channels_last"))
    ours = row["seconds"]["fedsparse layer"]["median"]
    assert row["ratios"]["fedsparse layer"]["torch dense"] == pytest.approx(best / ours)
    peak = found["provenance"]["multiply_add_flops_per_second"]
    share = 2 * row["nnz"] * 4 * 25 * 3 / ours / peak
    assert row["peak_fraction"]["fedsparse layer"] == pytest.approx(share)
    shapes = ["conv3x3/1 4->6 5x5", "conv3x3/2 3->4 6x6"]
    assert [one["shape"] for one in found["break_even"]] == [shape for shape in shapes for _ in WAYS]
    assert "torch.sparse CSR" in found["rows"][2]["ratios"]["fedsparse layer"]


def test_tables_have_a_cell_for_every_heading(report):
    assert [table.title.split(",")[0].split(" ")[0] for table in report.tables] == [
        "forward",
        "geometric",
        "break-even",
    ]
    for table in report.tables:
        assert table.rows
        assert all(len(row) == len(table.headings) for row in table.rows)


def test_geometric_means_are_over_the_3x3_convolutions_of_stride_1(report):
    rows = {row["name"]: row for row in report.rows}
    key = ("fedsparse layer", 0.5, "torch dense")
    (mean,) = [m for m in report.summary["geometric_means"] if (m["way"], m["density"], m["peer"]) == key]
    assert mean["shapes"] == 1
    assert mean["ratio"] == pytest.approx(
        rows["conv3x3/1 4->6 5x5 B4 d0.5"]["ratios"]["fedsparse layer"]["torch dense"]
    )


def test_geometric_means_of_several_shapes():
    case = LayerCase(4, 4, 4, density=0.5)
    rows = [
        kernels.KernelRow(case, 1, {}, {}, {"way": ratios}, {}, {}, {})
        for ratios in ({"dense": 2.0, "other": 5.0}, {"dense": 8.0})
    ]
    assert geometric_means(rows) == [
        {"density": 0.5, "way": "way", "peer": "dense", "ratio": pytest.approx(4.0), "shapes": 2}
    ]


# ---- break-even
@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        ([(0.1, 4.0), (0.5, 2.0), (0.7, 0.5)], (0.6, None)),
        ([(0.1, 4.0), (0.5, 1.0), (0.7, 0.5)], (0.5, None)),
        ([(0.1, 0.9), (0.3, 2.0), (0.5, 0.5), (0.7, 0.4)], (0.4, None)),  # the first loss was noise
        ([(0.1, 0.9), (0.2, 0.8)], (None, "below")),
        ([(0.1, 3.0), (1.0, 1.1)], (None, "above")),
    ],
)
def test_crossing(scan, expected):
    density, outside = crossing(scan)
    assert (pytest.approx(density) if density is not None else None, outside) == expected


def test_the_scan_ends_when_dense_wins_twice(monkeypatch):
    case, ratios = TINY[0], iter([3.0, 0.5, 2.0, 0.5, 0.4, 0.3])

    def fake(case, **_):
        return kernels.KernelRow(case, 1, {}, {}, {"fedsparse layer": {"torch dense": next(ratios)}}, {}, {}, {})

    monkeypatch.setattr(kernels, "measure_case", fake)
    found = break_even(case, WAYS[0], (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), rounds=1)
    assert [density for density, _ in found.scan] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found.density == pytest.approx(0.35)


# ---- granularities
def test_whole_units_are_kept_at_random():
    kept = Operands(LayerCase(16, 16, 4, density=0.5, granularity="block:8")).kept
    blocks = kept.view(2, 8, 2, 8, 9)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert 0 < int(kept.sum()) < kept.numel()
    assert str(LayerCase(4, 4, 4, granularity="vector:4")) == "conv3x3/1 4->4 4x4 B64 d0.1 vector:4"


def test_a_granularity_with_a_share_of_its_own_is_refused():
    with pytest.raises(ConfigError, match="granularity = 'nm:2:4' leaves no choice of a density"):
        measure(replace(SETTINGS, granularity="nm:2:4"))
