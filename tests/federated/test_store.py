"""What clients keep: by client id, on disk, linked into checkpoints."""

import os
import stat

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import CheckpointError, WireError
from fedsparse.federated.store import ClientStore, Kept, TopologyFiles
from fedsparse.pattern import Topology
from fedsparse.wire import Payload


def topology(*kept):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask.view(-1)[list(kept)] = True
    return Topology.from_masks({"a.weight": mask})


def memory(number):
    return wire.encode(Payload("memory", 0, extras={"number": number}))


def holding(store, client, kept, blob=b""):
    store.topologies.add(kept)
    store.commit(client, Kept(kept.digest, blob))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- states
def test_a_client_never_seen_keeps_nothing(tmp_path):
    assert ClientStore(tmp_path).kept(3) == Kept("", b"")


def test_a_state_comes_back_as_it_was(tmp_path):
    store = ClientStore(tmp_path)
    holding(store, 1, topology(2, 3), memory(5))
    holding(store, 12, topology(4), memory(6))
    assert store.kept(1) == Kept(topology(2, 3).digest, memory(5))
    assert store.kept(12) == Kept(topology(4).digest, memory(6))
    store.commit(1, Kept(topology(2, 3).digest))
    assert store.kept(1) == Kept(topology(2, 3).digest, b"")
    assert store.topologies.get(topology(4).digest) == topology(4)


def test_an_unchanged_memory_is_not_written_again(tmp_path):
    store = ClientStore(tmp_path)
    store.commit(1, Kept("", memory(5)))
    before = os.stat(tmp_path / "1.memory").st_ino
    store.commit(1, Kept("", memory(5)))
    assert os.stat(tmp_path / "1.memory").st_ino == before


def test_topologies_that_nobody_holds_are_removed(tmp_path):
    store = ClientStore(tmp_path)
    holding(store, 1, topology(1))
    holding(store, 2, topology(1))
    holding(store, 2, topology(2))
    store.tidy()
    assert names(tmp_path) == sorted(f"{topology(n).digest}.topology" for n in (1, 2))
    holding(store, 1, topology(2))
    store.tidy()
    assert names(tmp_path) == [f"{topology(2).digest}.topology"]
    # One that comes back is written again, though it may still be in memory.
    holding(store, 1, topology(1))
    assert TopologyFiles(tmp_path).get(topology(1).digest) == topology(1)


def test_memory_holds_a_few_topologies_and_disk_the_others(tmp_path):
    files = TopologyFiles(tmp_path)
    for number in range(20):
        files.add(topology(number))
    assert len(files._recent) == 4
    assert all(files.get(topology(number).digest) == topology(number) for number in range(20))
    assert len(files._recent) == 4


def test_a_topology_that_is_not_there(tmp_path):
    with pytest.raises(WireError, match=f"^topology {topology(1).digest} is not in "):
        TopologyFiles(tmp_path).get(topology(1).digest)


# ---- folders
def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1.memory").write_bytes(b"old")
    store = ClientStore(tmp_path / "store")
    assert store.kept(1) == Kept()
    assert names(tmp_path / "store") == []


def test_closing_removes_the_folder(tmp_path):
    store, temporary = ClientStore(tmp_path / "store"), ClientStore()
    assert stat.S_IMODE(temporary.folder.stat().st_mode) == 0o700
    for each in (store, temporary):
        each.close()
        assert not each.folder.exists()


# ---- checkpoints
@pytest.fixture(params=["links", "copies"])
def store(request, tmp_path, monkeypatch):
    if request.param == "copies":

        def refused(*_):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refused)
    return ClientStore(tmp_path / "store")


def test_a_saved_state_stays_as_it_was(store, tmp_path):
    holding(store, 1, topology(1), memory(5))
    holding(store, 2, topology(2), memory(6))
    store.save(tmp_path / "first")
    holding(store, 1, topology(3), memory(7))
    store.commit(2, Kept(topology(2).digest))
    store.save(tmp_path / "second")

    for folder, wanted in (
        ("first", {1: (1, memory(5)), 2: (2, memory(6))}),
        ("second", {1: (3, memory(7)), 2: (2, b"")}),
        ("first", {1: (1, memory(5)), 2: (2, memory(6))}),
    ):
        store.restore(tmp_path / folder)
        assert {c: store.kept(c) for c in (1, 2)} == {
            client: Kept(topology(number).digest, blob) for client, (number, blob) in wanted.items()
        }
        for client in (1, 2):
            assert TopologyFiles(store.folder).get(store.kept(client).held).digest == store.kept(client).held


def test_a_restored_state_outlives_the_checkpoint(store, tmp_path):
    holding(store, 1, topology(1), memory(5))
    store.save(tmp_path / "saved")
    store.restore(tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        path.unlink()
    assert store.kept(1) == Kept(topology(1).digest, memory(5))


def test_restoring_forgets_who_came_later(store, tmp_path):
    store.save(tmp_path / "empty")
    holding(store, 1, topology(1), memory(5))
    store.restore(tmp_path / "empty")
    assert store.kept(1) == Kept()
    assert names(store.folder) == []


def test_unchanged_states_take_no_more_space(tmp_path):
    store = ClientStore(tmp_path / "store")
    holding(store, 1, topology(1), memory(5))
    store.save(tmp_path / "first")
    store.save(tmp_path / "second")
    for name in ("1.memory", f"{topology(1).digest}.topology"):
        assert os.stat(tmp_path / "first" / name).st_ino == os.stat(tmp_path / "second" / name).st_ino


def test_new_files_are_on_disk_before_a_checkpoint_names_them(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
    )
    store = ClientStore(tmp_path / "store")
    store.commit(1, Kept("", memory(5)))
    store.commit(2, Kept("", memory(6)))
    store.save(tmp_path / "first")
    first = [os.path.relpath(path, tmp_path) for path in synced]
    assert first == ["store/1.memory", "store/2.memory", "first/index.fsp", "first"]
    synced.clear()
    store.commit(2, Kept("", memory(7)))
    store.save(tmp_path / "second")
    assert [os.path.relpath(path, tmp_path) for path in synced] == ["store/2.memory", "second/index.fsp", "second"]


@pytest.mark.parametrize("name", ["index.fsp", "1.memory"])
def test_a_checkpoint_with_a_file_missing_is_refused(store, tmp_path, name):
    store.commit(1, Kept("", memory(5)))
    store.save(tmp_path / "saved")
    (tmp_path / "saved" / name).unlink()
    with pytest.raises(CheckpointError, match=f"part of a checkpoint is not complete: .*{name}"):
        store.restore(tmp_path / "saved")


@pytest.mark.parametrize("digest", ["", "../x", "a" * 31, "A" * 32, f"{'a' * 32}/..", "a" * 31 + "\0"])
def test_a_digest_leads_nowhere_else(tmp_path, digest):
    with pytest.raises(WireError, match="is no digest of a topology: expected 32 hexadecimal digits"):
        TopologyFiles(tmp_path).get(digest)


@pytest.mark.parametrize("content", [{"topology": topology(2)}, {"topology": 3}, {"other": topology(1)}])
def test_a_file_of_another_topology_does_not_take_its_place(tmp_path, content):
    path = tmp_path / f"{topology(1).digest}.topology"
    path.write_bytes(wire.encode(Payload("topology", 0, extras=content)))
    with pytest.raises(WireError, match="holds something else than the topology that it is named after"):
        TopologyFiles(tmp_path).get(topology(1).digest)


HELD = {"held": {"1": topology(1).digest}, "remembering": {"1": True}}


@pytest.mark.parametrize(
    "index",
    [
        {},
        {**HELD, "held": 3},
        {**HELD, "held": {"one": "a" * 32}},
        {**HELD, "held": {"-1": "a" * 32}},
        {**HELD, "held": {"1": "../../x"}},
        {**HELD, "held": {"1": 5}},
        {**HELD, "remembering": {"1x": True}},
        {**HELD, "remembering": topology(1)},
        {**HELD, "remembering": {"1": 1.0}},
    ],
)
def test_an_index_that_says_something_else_changes_nothing(tmp_path, index):
    """Each of them ended with an error of Python's; found by the fuzzer."""
    store = ClientStore(tmp_path / "store")
    holding(store, 1, topology(1), memory(5))
    store.save(tmp_path / "saved")
    (tmp_path / "saved" / "index.fsp").write_bytes(wire.encode(Payload("clients", 0, extras=index)))
    with pytest.raises(CheckpointError):
        store.restore(tmp_path / "saved")
    assert store.kept(1) == Kept(topology(1).digest, memory(5))
