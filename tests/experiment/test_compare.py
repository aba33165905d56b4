"""Comparison of run folders written by hand."""

import json

import pytest

from fedsparse.errors import CheckpointError
from fedsparse.experiment import compare
from tests.experiment.folders import write_run


@pytest.fixture
def folder(tmp_path):
    return lambda name, **settings: write_run(tmp_path / name, **settings)


def test_a_sparse_run_is_measured_against_the_dense_one(folder):
    sparse = folder("sparse", method="static", density=0.1, accuracy=0.75, client_seconds=0.5, bytes_up=10)
    rows = compare([sparse, folder("dense")])
    assert [row.name for row in rows] == ["sparse", "dense"]
    assert rows[0].complete
    assert (rows[0].density, rows[0].accuracy) == (0.1, 0.75)
    assert (rows[0].client_seconds, rows[0].bytes_down, rows[0].bytes_up, rows[0].peak_bytes) == (
        1.0,
        200,
        20,
        400,
    )
    assert rows[0].relative == {"client_seconds": 0.25, "peak_bytes": 1.0, "bytes_down": 1.0, "bytes_up": 0.2}
    assert set(rows[1].relative.values()) == {1.0}
    assert [row.note for row in rows] == ["", ""]


def test_without_a_dense_run_nothing_is_relative(folder):
    rows = compare([folder("sparse", method="static", density=0.1), folder("pruned", density=0.5)])
    assert [(row.relative, row.note) for row in rows] == [({}, ""), ({}, "")]


def test_an_incomplete_run_is_flagged_and_never_the_measure(folder):
    rows = compare([folder("dense", done=1), folder("sparse", method="static", density=0.1), folder("none", done=0)])
    assert [row.complete for row in rows] == [False, True, False]
    assert [row.note for row in rows] == ["incomplete: 1 of 2 rounds", "", "incomplete: 0 of 2 rounds"]
    assert all(not row.relative for row in rows)
    assert rows[2].accuracy is None


def test_a_line_that_was_cut_off_is_not_counted(folder):
    run = folder("dense")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-10])
    assert compare([run])[0].note == "incomplete: 1 of 2 rounds"


def test_runs_of_other_tasks_are_not_set_in_relation(folder):
    rows = compare([folder("dense"), folder("other", method="static", density=0.1, alpha=5.0, batch_size=8)])
    assert rows[1].note == "not comparable with dense: data.alpha, client.batch_size differ"
    assert rows[1].relative == {}


def test_a_folder_of_variants_stands_for_those_that_started(folder, tmp_path):
    folder("demo/dense"), folder("demo/static", method="static", density=0.1)
    variants = {"dense": {}, "static": {}, "later": {}}
    (tmp_path / "demo" / "resolved.json").write_text(json.dumps({"variants": variants}))
    assert [row.method for row in compare([tmp_path / "demo"])] == ["fedavg", "static"]


def test_a_quantity_that_is_unavailable_stays_empty(folder):
    rows = compare([folder("dense"), folder("sparse", method="static", density=0.1, peak_bytes=None)])
    assert rows[1].peak_bytes is None
    assert "peak_bytes" not in rows[1].relative


def test_rows_are_json(folder):
    (row,) = compare([folder("dense")])
    assert json.loads(json.dumps(row.to_json()))["complete"] is True


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="gone: no such folder; give folders of runs"):
        compare([tmp_path / "gone"])
    with pytest.raises(CheckpointError, match=r"not a run folder, it has no resolved\.json; give one that"):
        compare([tmp_path])


def test_damage_is_named_with_its_line(folder):
    run = folder("dense")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 3: not JSON"):
        compare([run])
    (run / "resolved.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"resolved\.json: expected a JSON object, found list"):
        compare([run])
