"""A disk without room: one clear error, and the last checkpoint to go on from."""

import builtins
import errno
import shutil
from pathlib import Path

import pytest
import torch

from fedsparse.errors import CheckpointError
from fedsparse.federated import store
from fedsparse.federated.engines.process import ProcessEngine
from tests.federated.small_run import Remembering, exact, go, same_bits, small_plan

CHECKPOINT = ["round-000002.clients", "round-000002.fsp"]


@pytest.fixture(scope="module")
def plan():
    return small_plan(Remembering(), rounds=5, checkpoint_every=2)


@pytest.fixture(scope="module")
def whole(plan):
    torch.set_num_threads(1)
    return go(plan)


class Full:
    """A file that takes half of what is written."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *reason):
        return self._file.__exit__(*reason)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def fill(monkeypatch, suffix):
    """From now on there is no room for files of that name; drafts are those of the clients' states."""
    opened = Path.open

    def open_path(path, mode="r", **how):
        file = opened(path, mode, **how)
        return Full(file) if path.name.endswith(suffix) and mode != "r" else file

    monkeypatch.setattr(Path, "open", open_path)
    if suffix == ".draft":
        monkeypatch.setattr(store, "open", lambda *how: Full(builtins.open(*how)), raising=False)  # noqa: SIM115


@pytest.mark.parametrize(
    ("suffix", "named"),
    [
        (".draft", r"/(\d\.memory|[0-9a-f]{32}\.topology)"),
        (".partial", r"/checkpoints/round-000004\.fsp"),
        (".upload", r"/\.uploads/\d+\.upload"),
        ("metrics.jsonl", r"/metrics\.jsonl"),
        ("clients.jsonl", r"/clients\.jsonl"),
    ],
)
def test_the_run_ends_with_the_name_of_the_file_and_goes_on_when_there_is_room(plan, whole, suffix, named, tmp_path):
    with pytest.MonkeyPatch.context() as disk, pytest.raises(CheckpointError) as raised:
        go(plan, folder=tmp_path, on_round=lambda record: record["round"] == 2 and fill(disk, suffix))
    assert raised.match(rf"{named} cannot be written: .*No space left on device; make room there, then go on")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == CHECKPOINT
    assert not (tmp_path / ".uploads").exists()
    resumed = go(plan, folder=tmp_path, resume=True)
    assert same_bits(resumed, whole)
    assert exact(resumed.metrics) == exact(whole.metrics)


def test_clients_of_workers_do_not_fail_of_it(plan, whole, tmp_path):
    engine = ProcessEngine(plan, workers=1, timeout_s=600)
    try:
        with (
            pytest.MonkeyPatch.context() as disk,
            pytest.raises(CheckpointError, match=r"/\d\.memory cannot be written: .*No space left"),
        ):
            go(plan, engine, folder=tmp_path, on_round=lambda record: record["round"] == 2 and fill(disk, ".draft"))
    finally:
        engine.close()
    assert same_bits(go(plan, folder=tmp_path, resume=True), whole)


def test_a_worker_that_has_no_room_for_masks_ends_the_run_as_well(plan):
    engine = ProcessEngine(plan, workers=1, timeout_s=600)
    try:
        engine._workers[0]._await_start()
        shutil.rmtree(engine._store.folder)
        with pytest.raises(CheckpointError, match=r"\.topology cannot be written: .*No such file or directory"):
            go(plan, engine)
    finally:
        engine.close()
