"""Optimiser steps, measured where there is no GPU."""

from functools import partial

import pytest
import torch

from benchmarks.gpu import optimizers
from benchmarks.gpu.cases import sizes


def test_ours_and_torch_are_timed():
    rows = [row for job in optimizers.jobs(sizes(cpu=True), "cpu") for row in job.rows()]
    assert [row["op"] for row in rows] == ["sgd"] * 3 + ["adamw"] * 3
    assert len({row["who"] for row in rows}) == 6
    # 20 weights of a value each and 40 norms of 256
    assert [row["bytes"] for row in rows] == [20 * 10260] * 3 + [28 * 10260] * 3
    assert all(row["eager"]["median"] > 0 for row in rows)


def test_wrong_steps_are_not_timed(monkeypatch):
    monkeypatch.setattr(optimizers, "FlatSGD", partial(torch.optim.SGD, dampening=0.5))
    with pytest.raises(ValueError, match=r"FlatSGD is off by .* against float64"):
        list(next(iter(optimizers.jobs(sizes(cpu=True), "cpu"))).rows())
