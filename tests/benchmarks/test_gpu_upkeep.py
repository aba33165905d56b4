"""Work besides the products, measured where there is no GPU."""

import pytest
import torch

from benchmarks.gpu import upkeep
from benchmarks.gpu.cases import sizes


def test_every_kind_of_work_is_timed():
    rows = [row for job in upkeep.jobs(sizes(cpu=True), "cpu") for row in job.rows()]
    assert {row["op"] for row in rows} == set(upkeep.OPS)
    assert len(rows) == 9
    assert all(row["eager"]["median"] > 0 for row in rows)


def test_wrong_activations_are_not_timed(monkeypatch):
    monkeypatch.setattr(upkeep, "restore", lambda _, shape, dtype: torch.ones(shape, dtype=dtype))
    with pytest.raises(ValueError, match="pruned by the rule 'tile' differ from those of plain torch"):
        list(next(iter(upkeep.jobs(sizes(cpu=True), "cpu"))).rows())
