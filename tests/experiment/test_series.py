"""What a report draws, from folders written by hand."""

import pytest

from fedsparse.errors import CheckpointError
from fedsparse.experiment.records import read_runs
from fedsparse.experiment.series import Curve, accuracy_curves, final_point, layer_grid, turnover
from tests.experiment.folders import write_lines, write_run


@pytest.fixture
def read(tmp_path):
    def one(**settings):
        (run,) = read_runs([write_run(tmp_path / "run", **settings)])
        return run

    return one


def test_accuracy_over_rounds_bytes_and_seconds(read):
    assert accuracy_curves(read(rounds=3, done=3)) == {
        "rounds": Curve((1.0, 2.0, 3.0), (0.8, 0.8, 0.8)),
        "bytes": Curve((150.0, 300.0, 450.0), (0.8, 0.8, 0.8)),
        "client seconds": Curve((2.0, 4.0, 6.0), (0.8, 0.8, 0.8)),
    }


def test_rounds_without_evaluation_cost_but_are_no_point(tmp_path):
    folder = write_run(tmp_path / "run")
    spent = {"bytes_down": 10, "bytes_up": 1, "client_seconds": 1.0}
    write_lines(
        folder / "metrics.jsonl",
        [{"round": n, "accuracy": accuracy, **spent} for n, accuracy in enumerate((None, 0.5, None, 0.7))],
    )
    curves = accuracy_curves(read_runs([folder])[0])
    assert curves["bytes"] == Curve((22.0, 44.0), (0.5, 0.7))
    assert curves["rounds"].x == (2.0, 4.0)


def test_what_is_unavailable_ends_its_curve_alone(read):
    run = read(client_seconds=None)
    curves = accuracy_curves(run)
    assert curves["client seconds"] == Curve((), ())
    assert curves["bytes"].x == (150.0, 300.0)
    assert final_point(run) == (300.0, 0.8)


def test_a_run_without_rounds_has_no_final_point(read):
    run = read(done=0)
    assert final_point(run) is None
    assert layer_grid(run) is None


def test_turnover_is_changed_by_kept(read):
    assert turnover(read(masks_changed=4, nnz=16)) == Curve((1.0, 2.0), (0.25, 0.25))


def test_layers_over_rounds_by_hand(tmp_path):
    folder = write_run(tmp_path / "run")

    def line(round, layer, nnz, changed):
        return {"round": round, "layer": layer, "size": 8, "nnz": nnz, "changed": changed}

    late = [line(1, "b", 4, 2), line(1, "a", 1, 0)]
    write_lines(folder / "layers.jsonl", [line(0, "b", 2, 1), *late, line(2, "b", 8, 8)])
    grid = layer_grid(read_runs([folder])[0])
    assert grid.layers == ("b", "a")
    assert grid.density == ((0.25, 0.5), (1.0, 0.125)), "a was dense in round 0; round 2 is not finished"
    assert grid.turnover == ((0.5, 0.5), (0.0, 0.0))


def test_a_damaged_file_of_layers_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "layers.jsonl").write_text("{\n")
    with pytest.raises(CheckpointError, match=r"layers\.jsonl, line 1: not JSON"):
        layer_grid(read_runs([folder])[0])
