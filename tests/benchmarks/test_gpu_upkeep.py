"""Work besides the products, measured where there is no GPU."""

import pytest
import torch

from benchmarks.gpu import upkeep
from benchmarks.gpu.cases import sizes
from tests.devices import pretend


def test_every_kind_of_work_is_timed():
    rows = [row for job in upkeep.jobs(sizes(cpu=True), "cpu") for row in job.rows()]
    assert {row["op"] for row in rows} == {*upkeep.OPS} - {"lists"}, "the kernels of the CPU read none"
    assert len(rows) == 13
    assert all(row["eager"]["median"] > 0 for row in rows)


@pytest.mark.parametrize("unit", ["element", "vector:16", "block:16"])
def test_lists_are_timed_with_and_without_a_look_at_the_pattern(binding, monkeypatch, unit):
    pretend(binding, monkeypatch)
    rows = list(upkeep.lists(sizes(cpu=True), "cpu", unit))
    who = f"lists of four (8, 8, 3, 3), both directions, {unit}"
    assert [row["who"] for row in rows] == [who, f"{who}, known strips"]
    assert all(row["op"] == "lists" and row["eager"]["median"] > 0 for row in rows)


def test_wrong_activations_are_not_timed(monkeypatch):
    monkeypatch.setattr(upkeep, "restore", lambda _, shape, dtype: torch.ones(shape, dtype=dtype))
    with pytest.raises(ValueError, match="pruned by the rule 'tile' differ from those of plain torch"):
        list(next(iter(upkeep.jobs(sizes(cpu=True), "cpu"))).rows())


def test_what_topk_keeps_is_held_against_ours(monkeypatch):
    monkeypatch.setattr(upkeep, "_by_topk", lambda *_: (torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)))
    with pytest.raises(ValueError, match="differ from those that topk keeps"):
        list(next(iter(upkeep.jobs(sizes(cpu=True), "cpu"))).rows())
