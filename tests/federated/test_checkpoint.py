"""Checkpoints: there in full or not at all."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import CheckpointError
from fedsparse.federated.checkpoint import Checkpoints
from fedsparse.wire import Payload


def state(round):
    return Payload("checkpoint", round, extras={"value": torch.tensor([float(round), 0.1])})


def clients(round):
    """Writes one message, of that round, beside the checkpoint."""

    def write(folder):
        folder.mkdir()
        (folder / "0.memory").write_bytes(wire.encode(state(round)))

    return write


def names(folder):
    """Of the files; each checkpoint has its folder, and no folder is there without one, but for a crash."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    folders = {path.stem for path in folder.iterdir() if path.is_dir()}
    assert folders >= {Path(name).stem for name in files if name.endswith(".fsp")}
    return files


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "checkpoints")
    checkpoints.save(state(3), clients(3))
    found = Checkpoints(tmp_path / "new" / "checkpoints").newest()
    assert (found.task, found.round) == ("checkpoint", 3)
    assert torch.equal(found.extras["value"], torch.tensor([3.0, 0.1]))


def test_nothing_saved_is_nothing_found(tmp_path):
    assert Checkpoints(tmp_path / "none").newest() is None
    assert Checkpoints(tmp_path).newest() is None
    (tmp_path / "round-000001.partial").write_bytes(b"begun")
    assert Checkpoints(tmp_path).newest() is None


def test_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for round in (8, 9, 10, 11):
        checkpoints.save(state(round), clients(round))
    assert names(tmp_path) == ["round-000010.fsp", "round-000011.fsp"]
    assert checkpoints.newest().round == 11


def test_what_lies_beside_goes_with_its_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for round in (8, 9, 10):
        checkpoints.save(state(round), clients(round))
    assert sorted(path.name for path in tmp_path.glob("*.clients")) == ["round-000009.clients", "round-000010.clients"]
    assert wire.decode((checkpoints.clients(10) / "0.memory").read_bytes()).round == 10
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_checkpoint_whose_clients_are_damaged_is_passed_over(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    for round in (1, 2):
        checkpoints.save(state(round), clients(round))
    folder = checkpoints.clients(2)
    if damage == "gone":
        shutil.rmtree(folder)
    else:
        blob = bytearray((folder / "0.memory").read_bytes())
        blob[-1] ^= 1
        (folder / "0.memory").write_bytes(blob)
    with pytest.warns(UserWarning, match=r"round-000002\.fsp cannot be used"):
        assert checkpoints.newest().round == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), clients(1))
    checkpoints.save(state(2), clients(2))
    path = tmp_path / "round-000002.fsp"
    blob = path.read_bytes()
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 1
    path.write_bytes({"truncated": blob[:-1], "flipped": bytes(flipped), "empty": b"", "other": b"PK" * 30}[damage])
    with pytest.warns(UserWarning, match=r"checkpoint .*round-000002\.fsp cannot be used \(.+\); trying the"):
        assert checkpoints.newest().round == 1


def test_when_all_are_damaged_nothing_is_guessed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for round in (1, 2):
        checkpoints.save(state(round), clients(round))
        (tmp_path / f"round-{round:06d}.fsp").write_bytes(b"")
    with pytest.warns(UserWarning, match="trying the one before"), pytest.raises(CheckpointError) as raised:
        checkpoints.newest()
    assert str(raised.value) == f"none of the checkpoints in {tmp_path} can be read; start the run again"


def test_a_crash_while_writing_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), clients(1))
    real = os.fsync

    def crash(handle):
        real(handle)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(state(2), clients(2))
    monkeypatch.undo()
    assert names(tmp_path) == ["round-000001.fsp", "round-000002.partial"]
    assert checkpoints.newest().round == 1
    checkpoints.save(state(2), clients(2))
    assert names(tmp_path) == ["round-000001.fsp", "round-000002.fsp"]


def test_contents_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append("rename"), replace(path, to))[1])
    Checkpoints(tmp_path).save(state(1), clients(1))
    assert order[:2] == ["sync", "rename"]
    assert order[2:] == (["sync"] if os.name == "posix" else [])


def test_a_failed_write_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"/round-000004\.fsp cannot be written: .*; make room"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(state(4), clients(4))


def test_the_file_is_one_message_of_the_wire(tmp_path):
    Checkpoints(tmp_path).save(state(5), clients(5))
    assert wire.decode((tmp_path / "round-000005.fsp").read_bytes()).round == 5
    assert (tmp_path / "round-000005.fsp").read_bytes() == wire.encode(state(5))
