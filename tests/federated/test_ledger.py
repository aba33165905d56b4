"""Records on disk, and their return to an earlier moment."""

import json

import pytest
import torch

from fedsparse.errors import CheckpointError
from fedsparse.federated.ledger import Ledger
from fedsparse.pattern import Topology


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_lines_of_json(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_client({"client": 3})
    ledger.add_round({"round": 0, "accuracy": None})
    ledger.add_round({"round": 1, "accuracy": 0.1})
    assert lines(tmp_path / "clients.jsonl") == [{"client": 3}]
    assert lines(tmp_path / "metrics.jsonl") == ledger.rounds
    assert ledger.rounds == [{"round": 0, "accuracy": None}, {"round": 1, "accuracy": 0.1}]


def test_layers_are_recorded_with_what_changed(tmp_path):
    before = Topology.from_masks({"a": torch.tensor([[True, True, False]]), "b": torch.tensor([[True, False]])})
    after = Topology.from_masks({"a": torch.tensor([[True, False, True]]), "b": torch.tensor([[True, False]])})
    Ledger(tmp_path).add_layers(4, after, before)
    assert lines(tmp_path / "layers.jsonl") == [
        {"round": 4, "layer": "a", "size": 3, "nnz": 2, "changed": 2},
        {"round": 4, "layer": "b", "size": 2, "nnz": 1, "changed": 0},
    ]


def test_a_record_is_on_disk_at_once(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_round({"round": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0}\n'


def test_a_number_that_json_lacks_is_refused(tmp_path):
    ledger = Ledger(tmp_path)
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            ledger.add_client({"seconds": number})
    assert not (tmp_path / "clients.jsonl").exists() or not lines(tmp_path / "clients.jsonl")


def test_what_was_written_after_the_checkpoint_goes(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_client({"client": 0})
    ledger.add_round({"round": 0})
    lengths = ledger.lengths()
    assert lengths == {
        "metrics.jsonl": (tmp_path / "metrics.jsonl").stat().st_size,
        "clients.jsonl": (tmp_path / "clients.jsonl").stat().st_size,
        "layers.jsonl": 0,
    }
    ledger.add_client({"client": 1})
    ledger.add_round({"round": 1})
    for name in lengths:
        with (tmp_path / name).open("a") as file:
            file.write('{"round": 2, "accu')  # a kill in the middle of a line
    again = Ledger(tmp_path)
    again.restore(lengths)
    assert again.rounds == lines(tmp_path / "metrics.jsonl") == [{"round": 0}]
    assert lines(tmp_path / "clients.jsonl") == [{"client": 0}]
    again.add_round({"round": 1})
    assert lines(tmp_path / "metrics.jsonl") == [{"round": 0}, {"round": 1}]


def test_without_a_checkpoint_it_begins_again(tmp_path):
    Ledger(tmp_path).add_round({"round": 0})
    again = Ledger(tmp_path)
    again.restore({})
    assert again.rounds == []
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "clients.jsonl").read_text() == ""


def test_missing_lines_are_not_made_up(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_round({"round": 0})
    lengths = ledger.lengths()
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(CheckpointError) as raised:
        Ledger(tmp_path).restore(lengths)
    assert str(raised.value) == (
        f"{tmp_path / 'metrics.jsonl'} has 1 bytes, the checkpoint was taken at 13; "
        "put the missing lines back, or start the run again"
    )
    assert (tmp_path / "metrics.jsonl").read_text() == "{"


def test_without_a_folder_rounds_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(None)
    ledger.add_client({"client": 0})
    ledger.add_round({"round": 0})
    assert ledger.lengths() == {}
    assert ledger.rounds == [{"round": 0}]
    assert list(tmp_path.iterdir()) == []
