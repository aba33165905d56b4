"""Uploads on disk: what comes back, when it is gone, and how little of it is in memory."""

import json
import tracemalloc
import weakref
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse import _native, wire
from fedsparse.errors import CheckpointError, MethodError
from fedsparse.federated import uploads as uploads_module
from fedsparse.federated.engines.base import Reply
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.federated.uploads import StoredUpdate, Uploads
from fedsparse.measure import Reading
from fedsparse.methods.feddst import FedDST
from fedsparse.methods.roles import Update
from fedsparse.methods.static import Static
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import Payload
from tests.federated.small_run import MEASURED, Remembering, exact, go, same_bits, small_method, small_plan

MOST_BYTES = 1 << 20


def weights(client, *kept):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask.view(-1)[list(kept)] = True
    values = torch.arange(len(kept), dtype=torch.float32) + client
    return Weights(Topology.from_masks({"a.weight": mask}), {"a.weight": values}, {"b": torch.tensor([float(client)])})


def put(uploads, client, sent, *, by_reference=True):
    """Puts the update of a client away, and gives what it was made of as well."""
    plain = Update(client, 10 + client, sent, {"loss": 0.5 * client})
    known = {sent.topology.digest} if by_reference else ()
    blob = wire.encode(Payload("train", 0, sent, plain.extras), known=known)
    return plain, uploads.put(plain, blob, sent.topology)


def assert_alike(found, wanted):
    assert (found.client_id, found.num_samples, found.extras) == (wanted.client_id, wanted.num_samples, wanted.extras)
    assert found.weights.topology == wanted.weights.topology
    ours, theirs = dict(found.weights.items()), dict(wanted.weights.items())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ---- what comes back
@pytest.mark.parametrize("recent", [1, 2, 100])
def test_updates_come_back_as_they_were_in_any_order(recent, tmp_path):
    uploads = Uploads(tmp_path / "up", recent=recent, most_bytes=MOST_BYTES)
    # Twice as many topologies as TopologyFiles remembers.
    pairs = [put(uploads, client, weights(client, client, 9, 13 + client % 3)) for client in range(8)]
    assert all(isinstance(stored, StoredUpdate) and isinstance(stored, Update) for _, stored in pairs)
    for plain, stored in [*pairs, *reversed(pairs), *pairs[::3]]:
        assert_alike(stored, plain)


def test_an_update_without_weights_and_without_a_download_comes_back(tmp_path):
    uploads = Uploads(tmp_path, recent=1, most_bytes=MOST_BYTES)
    blobs = [wire.encode(Payload("count", 0, None, {"n": number})) for number in range(2)]
    stored = [uploads.put(Update(n, 1, None, {"n": n}), blob, None) for n, blob in enumerate(blobs)]
    assert [(update.weights, update.extras) for update in stored] == [(None, {"n": 0}), (None, {"n": 1})]


def test_the_last_few_are_decoded_once(tmp_path):
    uploads = Uploads(tmp_path, recent=2, most_bytes=MOST_BYTES)
    stored = [put(uploads, client, weights(client, 1, 2))[1] for client in range(3)]
    assert stored[2].weights is stored[2].weights
    first, second = stored[0].weights, stored[1].weights
    assert stored[1].weights is second
    assert stored[2].weights is not None
    assert stored[0].weights is not first  # the two that were looked at since have taken its place


# ---- when it is gone
def test_the_folder_is_there_from_the_first_upload_to_the_end_of_the_round(tmp_path):
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / "7.upload").write_bytes(b"of a run that was killed")
    uploads = Uploads(folder, recent=1, most_bytes=MOST_BYTES)
    assert not folder.exists()
    for _ in range(2):
        stored = [put(uploads, client, weights(client, 1, 2))[1] for client in range(2)]
        assert len(list(folder.glob("*.upload"))) == 2
        uploads.clear()
        assert not folder.exists()
        with pytest.raises(CheckpointError, match=r"\d\.upload cannot be read back: .*until its round ends"):
            _ = stored[0].weights
    put(uploads, 0, weights(0, 1))
    uploads.close()
    assert not folder.exists()


def test_a_damaged_upload_is_not_believed(tmp_path):
    uploads = Uploads(tmp_path, recent=1, most_bytes=MOST_BYTES)
    stored = [put(uploads, client, weights(client, 1, 2))[1] for client in range(2)]
    path = tmp_path / "0.upload"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"0\.upload cannot be read back: the header announces"):
        _ = stored[0].extras


class Watching(Remembering):
    """Notes what lies in the folder of uploads while it aggregates; fails when told."""

    def look(self, folder, fails=None):
        object.__setattr__(self, "_look", (folder, fails, []))
        return self

    @property
    def seen(self):
        return self._look[2]

    def aggregate(self, server, updates):
        folder, fails, seen = self._look
        seen.append(len(list((folder / ".uploads").glob("*.upload"))))
        if server.round == fails:
            raise MethodError("told to")
        return super().aggregate(server, updates)


def test_the_files_of_a_run_are_gone_after_each_round_and_after_a_failure(tmp_path):
    def gone(_):
        assert not (tmp_path / ".uploads").exists()

    method = Watching().look(tmp_path, fails=2)
    plan = small_plan(method, rounds=4, checkpoint_every=1)
    with pytest.raises(MethodError, match="told to"):
        go(plan, folder=tmp_path, on_round=gone, at_once=2)
    assert method.seen == [4, 4, 4]
    gone(None)
    # And the run goes on from there, over what a killed one would have left.
    (tmp_path / ".uploads").mkdir()
    (tmp_path / ".uploads" / "0.upload").write_bytes(b"left")
    whole = go(small_plan(Remembering(), rounds=4))
    resumed = go(replace(plan, method=Watching().look(tmp_path)), folder=tmp_path, resume=True, at_once=3)
    assert same_bits(resumed, whole)
    assert exact(resumed.metrics) == exact(whole.metrics)
    gone(None)


# ---- how little of it is in memory
def large_net():
    """64 -> 2000 -> 10: 150,010 numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2000), nn.ReLU(), nn.Linear(2000, 10))


class Instant:
    """Answers without any work: the answers of a few clients, over and over, each in bytes of its own."""

    def __init__(self, answers):
        self._answers = answers

    def exchange(self, requests):
        none = Reading(None, "B", "unavailable")
        blobs = [self._answers[request.client_id % len(self._answers)] for request in requests]
        return [Reply(r.client_id, bytes(bytearray(b)), "", none, none) for r, b in zip(requests, blobs, strict=True)]


def peak_of_a_round(method, answers_of, clients, at_once):
    """Most bytes, of tensors and of Python, that the server takes for one exchange and its aggregation."""
    plan = small_plan(method, sizes=(1,) * clients, per_round=clients, build_model=large_net)
    engine = Instant([])
    server = FederatedServer(plan, engine, Ledger(None), at_once=at_once)
    server.weights = method.start(server)
    server.begin(1)
    engine._answers = answers_of(server)
    tracemalloc.start()
    try:
        with fs.measure() as measured:
            updates = server.ask(
                method.train, lambda client: method.download(server, client), weights_back=True, check=method.check
            )
            assert len(updates) == clients
            server.weights = method.aggregate(server, updates)
            method.adjust(server, updates)
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        server.close()
    assert measured.peak_bytes.value is not None
    return measured.peak_bytes.value + python


def with_the_masks_sent(server):
    sent = server.weights
    return [wire.encode(Payload("train", 1, sent), known={sent.topology.digest})]


def with_masks_of_their_own(server):
    answers = []
    for client in range(3):
        moved = {name: mask.roll(client, 1) for name, mask in server.weights.topology.masks().items()}
        answers.append(wire.encode(Payload("train", 1, server.weights.moved_to(Topology.from_masks(moved)))))
    return answers


counted = pytest.mark.skipif(not _native.extension().memory_counted(), reason="the allocator cannot be counted here")
CASES = [(Static(density=0.5), with_the_masks_sent), (FedDST(density=0.5, adjust_every=1), with_masks_of_their_own)]


@counted
@pytest.mark.parametrize(("method", "answers_of"), CASES, ids=["masks sent", "own masks"])
def test_memory_does_not_depend_on_the_number_of_clients(method, answers_of):
    peak_of_a_round(method, answers_of, 5, 4)  # what is imported and remembered once
    few, more, many = (peak_of_a_round(method, answers_of, clients, 4) for clients in (10, 100, 300))
    assert max(few, more, many) < 1.3 * min(few, more, many), (few, more, many)
    # It is the slices that keep it so: without any, it grows with the clients.
    assert peak_of_a_round(method, answers_of, 100, 100) > 4 * more


class Alive:
    """Stands for `wire` where uploads are read back, and counts the messages of which something is still held.

    Attributes:
        most: at any moment.
        opened: all together.
    """

    def __init__(self):
        self._held = []
        self.most = self.opened = 0

    def decode(self, blob, **how):
        message = wire.decode(blob, **how)
        self._held = [leaves for leaves in self._held if any(leaf() is not None for leaf in leaves)]
        tensors = [] if message.weights is None else [tensor for _, tensor in message.weights.items()]
        self._held.append([weakref.ref(leaf) for leaf in (*tensors, *_leaves(message.extras))])
        self.most, self.opened = max(self.most, len(self._held)), self.opened + 1
        return message


def _leaves(section):
    """What of extras is as large as a layer: not the ten losses of a client."""
    if isinstance(section, Mapping) and not isinstance(section, Topology):
        return [leaf for part in section.values() for leaf in _leaves(part)]
    small = isinstance(section, (int, float, str)) or (isinstance(section, torch.Tensor) and section.numel() <= 10)
    return [] if small else [section]


EVERY = (
    "fedavg", "feddst", "fedmef", "fedpaq", "fedrandprune", "fedrts", "fedsgc", "fedtiny", "fedtiny_clean", "prunefl",
    "prunefl_fixed",
)  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_methods_look_at_one_update_after_the_other(name, monkeypatch):
    alive = Alive()
    monkeypatch.setattr(uploads_module, "wire", alive)
    go(small_plan(small_method(name), rounds=3, per_round=6), at_once=1)
    assert alive.opened >= 3 * 5
    # The one that is remembered, the one that a loop has gone on to, and the first, by which sums are made.
    assert alive.most <= 3


# ---- what slices change: nothing
def without_times(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.mark.parametrize("name", ["fedavg", "fedtiny", "fedsgc", "fedpaq", "fedrts", "prunefl_fixed"])
def test_results_and_records_do_not_depend_on_the_slices(name, tmp_path):
    plan = small_plan(small_method(name), rounds=4, sizes=(40, 25, 0, 33, 30), per_round=5)
    found = []
    for at_once in (5, 1, 2, 32):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        outcome = go(plan, folder=folder, at_once=at_once)
        found.append((outcome, without_times(folder / "clients.jsonl"), (folder / "layers.jsonl").read_text()))
    first = found[0]
    for other in found[1:]:
        assert same_bits(other[0], first[0])
        assert exact(other[0].metrics) == exact(first[0].metrics)
        assert other[1:] == first[1:]
