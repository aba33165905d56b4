"""Means and standard errors by hand."""

import json
import math

import pytest

from fedsparse.experiment import compare
from fedsparse.experiment.over_seeds import Spread, over_seeds
from fedsparse.experiment.records import read_runs
from tests.experiment.folders import write_run


@pytest.fixture
def groups(tmp_path):
    def read(*runs):
        folders = [write_run(tmp_path / f"{number}", **settings) for number, settings in enumerate(runs)]
        return over_seeds(read_runs(folders))

    return read


def test_mean_and_standard_error_over_three_seeds(groups):
    (group,) = groups(
        *({"name": f"small_seed-{seed}", "seed": seed, "accuracy": 0.6 + 0.1 * seed} for seed in range(3))
    )
    assert (group.name, group.method, group.seeds, group.left_out) == ("small", "fedavg", (0, 1, 2), {})
    # 0.6, 0.7, 0.8: the deviation is 0.1, the error of the mean 0.1 / sqrt(3).
    assert group.figures["accuracy"].mean == pytest.approx(0.7)
    assert group.figures["accuracy"].error == pytest.approx(0.1 / math.sqrt(3))
    assert group.figures["bytes_down"] == Spread(200.0, 0.0)
    assert group.figures["peak_bytes"] == Spread(400.0, 0.0)


def test_everything_but_the_seed_separates_groups(groups):
    found = groups(
        {"seed": 0, "method": "static", "settings": {"density": 0.2}},
        {"seed": 1, "method": "static", "settings": {"density": 0.1}},
        {"seed": 2, "method": "static", "settings": {"density": 0.2}},
        {"seed": 3, "method": "static", "settings": {"density": 0.2}, "alpha": 5.0},
    )
    assert [group.seeds for group in found] == [(0, 2), (1,), (3,)]
    assert found[1].figures["accuracy"] == Spread(0.8, None)


def test_incomplete_runs_and_second_ones_of_a_seed_are_left_out(groups, tmp_path):
    (group,) = groups({"seed": 0}, {"seed": 1, "done": 1}, {"seed": 0, "accuracy": 0.1})
    assert group.seeds == (0,)
    assert group.left_out == {
        str(tmp_path / "1"): "incomplete: 1 of 2 rounds",
        str(tmp_path / "2"): "seed 0 is in the figures already",
    }
    assert group.figures["accuracy"] == Spread(0.8, None)


def test_a_quantity_that_one_run_lacks_has_no_mean(groups):
    (group,) = groups({"seed": 0}, {"seed": 1, "peak_bytes": None})
    assert group.figures["peak_bytes"] is None
    assert group.figures["accuracy"] == Spread(0.8, 0.0)
    assert json.loads(json.dumps(group.to_json()))["figures"]["peak_bytes"] is None


def test_a_run_is_measured_against_the_dense_one_of_its_seed(tmp_path):
    folders = [
        write_run(tmp_path / "dense-0", seed=0, bytes_up=100),
        write_run(tmp_path / "dense-1", seed=1, bytes_up=50),
        write_run(tmp_path / "sparse-1", seed=1, method="static", density=0.1, bytes_up=5),
        write_run(tmp_path / "sparse-2", seed=2, method="static", density=0.1, bytes_up=5),
    ]
    assert [row.relative["bytes_up"] for row in compare(folders)] == [1.0, 1.0, 0.1, 0.05]
