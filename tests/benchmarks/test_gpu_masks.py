"""Masks of a whole network moved, measured where there is no GPU."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import masks
from benchmarks.gpu.cases import sizes
from fedsparse.backends.cpu import CpuBackend
from fedsparse.bench.cases import LayerCase
from tests.devices import pretend

TINY = sizes(cpu=True)


def test_ours_and_torch_are_timed():
    rows = [row for job in masks.jobs(TINY, "cpu") for row in job.rows()]
    assert [(row["op"], row["precision"]) for row in rows] == [
        *[("regrow", name) for name in ("bf16", "bf16", "fp32", "fp32", "tf32", "tf32")],
        *[("prune", "fp32")] * 2,
    ]
    assert all(row["eager"]["median"] > 0 for row in rows)
    assert rows[0]["who"] == "ours, 1 layers, batch 3, bf16"


def test_layers_are_those_of_the_network():
    cases = masks._cases(sizes(cpu=False))
    assert len(cases) == 19
    assert {case.batch for case in cases} == {128}
    assert sum(case.inputs * case.outputs * case.kernel**2 for case in cases) == 11_157_504


def test_strides_and_single_pixels_agree_with_torch():
    cases = (LayerCase(8, 16, 6, stride=2, batch=4), LayerCase(8, 16, 6, kernel=1, batch=4))
    more = replace(TINY, cases=cases, layouts=("nchw", "channels_last"))
    rows = [row for job in masks.jobs(more, "cpu") for row in job.rows()]
    assert len(rows) == 3 * (1 + 2) + 2, "dense gradients in both layouts"


def test_moved_patterns_are_listed_both_ways(binding, monkeypatch):
    pretend(binding, monkeypatch)
    cases = masks._cases(TINY)
    patterns = [masks._pattern(case, "cpu", 0) for case in cases]
    made = masks._listed([*zip(cases, patterns, strict=True)], "cpu")
    assert [[one.problem.backward for one in lists] for lists in made] == [[False, True]] * len(cases)


@pytest.mark.parametrize(
    "answer",
    [
        lambda positions, gradients: (positions.flip(0)[[0] * len(positions)], gradients),
        lambda positions, gradients: (positions, 1.1 * gradients),
    ],
)
def test_wrong_gradients_are_not_timed(monkeypatch, answer):
    right = CpuBackend.topk_pruned
    monkeypatch.setattr(CpuBackend, "topk_pruned", lambda self, *args: answer(*right(self, *args)))
    with pytest.raises(ValueError, match=r"ours, fp32, .* against float64"):
        list(list(masks.jobs(TINY, "cpu"))[1].rows())


def test_other_patterns_are_not_timed(monkeypatch):
    monkeypatch.setattr(masks, "smallest", lambda _, counts: [torch.arange(count) for count in counts])
    with pytest.raises(ValueError, match="differ from what dense torch makes of them"):
        list(list(masks.jobs(TINY, "cpu"))[-1].rows())
