"""Worker processes: the bits of `inline`, and what becomes of workers that are lost."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ClientError, ConfigError
from fedsparse.federated.engines import process
from fedsparse.federated.engines.base import Request
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.engines.process import ProcessEngine
from fedsparse.federated.failure import ClientFailure
from fedsparse.methods.roles import client_task
from fedsparse.nn import read_weights
from fedsparse.wire import Payload
from tests.federated.small_run import Remembering, SmallNet, SpyEngine, exact, go, same_bits, small_plan

ROUNDS = 6


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def _divide():
    raise ZeroDivisionError("division by zero")


def _allocate():
    raise MemoryError


def _fail():
    raise ClientFailure("it went home")


TROUBLES = {"kill": _kill, "hang": _stop, "raise": _divide, "memory": _allocate, "fail": _fail}


@dataclass(frozen=True, kw_only=True)
class Troubled(Remembering):
    """Clients meet the trouble that a file of their id and round names, as often as it says, after their work."""

    name: ClassVar[str] = "troubled"
    folder: str = ""

    @client_task
    def train(self, client):
        super().train(client)
        path = Path(self.folder, f"{client.id}-{client.round}")
        troubles = path.read_text().split() if path.exists() else []
        if troubles:
            path.write_text(" ".join(troubles[1:]))
            TROUBLES[troubles[0]]()
        return {"threads": torch.get_num_threads()}


@pytest.fixture(scope="module")
def troubles(tmp_path_factory):
    return tmp_path_factory.mktemp("troubles")


@pytest.fixture(scope="module")
def plan(troubles):
    return replace(small_plan(Troubled(folder=str(troubles)), rounds=ROUNDS, checkpoint_every=100), threads=2)


@pytest.fixture(scope="module")
def pool(plan, tmp_path_factory):
    """Two workers, and the folder of their clients' state before any run."""
    engine = ProcessEngine(plan, workers=2, timeout_s=8)
    pristine = tmp_path_factory.mktemp("pristine") / "state"
    engine.save(pristine)
    yield engine, pristine
    engine.close()
    assert not any(_alive(pid) for pid in _children())


@pytest.fixture
def engine(pool):
    engine, pristine = pool
    engine.restore(pristine)
    return engine


@pytest.fixture(scope="module")
def undisturbed(plan):
    spy = SpyEngine(plan)
    return go(plan, spy), spy


def _children():
    return [child.pid for child in multiprocessing.active_children()]


def _alive(pid):
    return Path(f"/proc/{pid}").exists()


def without_retries(metrics):
    return [{**record, "clients_retried": 0} for record in exact(metrics)]


def records(folder):
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


# ---- the same bits
def test_the_bits_and_bytes_of_inline(plan, engine, undisturbed):
    wanted, spy = undisturbed
    delivered = []

    class Listening:
        def exchange(self, requests):
            delivered.append(engine.exchange(requests))
            return delivered[-1]

    outcome = go(plan, Listening())
    assert same_bits(outcome, wanted)
    assert exact(outcome.metrics) == exact(wanted.metrics)
    for replies, pairs in zip(delivered, spy.exchanges, strict=True):
        assert [(r.client_id, r.blob) for r in replies] == [(r.client_id, r.blob) for _, r in pairs]
    readings = [(r.seconds, r.peak_bytes) for replies in delivered for r in replies]
    assert {(s.source, p.source) for s, p in readings} == {("measured", spy.exchanges[0][0][1].peak_bytes.source)}
    assert all(s.value > 0 for s, _ in readings)


def test_a_run_may_change_engines_where_it_stopped(plan, engine, undisturbed, tmp_path):
    wanted, _ = undisturbed
    go(plan, folder=tmp_path, stop_after=2)
    go(plan, engine, folder=tmp_path, stop_after=2, resume=True)
    resumed = go(plan, folder=tmp_path, resume=True)
    assert same_bits(resumed, wanted)
    assert exact(resumed.metrics) == exact(wanted.metrics)


# ---- lost workers
def test_lost_workers_change_nothing(plan, engine, undisturbed, troubles, tmp_path):
    wanted, spy = undisturbed
    cohorts = [[request.client_id for request, _ in exchange] for exchange in spy.exchanges]
    (troubles / f"{cohorts[1][0]}-1").write_text("memory")
    (troubles / f"{cohorts[2][3]}-2").write_text("hang")
    first = set(engine.pids)

    def kill_an_idle_worker(record):
        if record["round"] == 3:
            os.kill(engine.pids[0], signal.SIGKILL)

    outcome = go(plan, engine, folder=tmp_path, on_round=kill_an_idle_worker)
    assert same_bits(outcome, wanted)
    assert without_retries(outcome.metrics) == exact(wanted.metrics)
    assert [record["clients_retried"] for record in outcome.metrics] == [0, 1, 1, 0, 1, 0]
    retried = [(x["round"], x["client"], x["status"], x["retries"]) for x in records(tmp_path) if x["retries"]]
    assert retried[:2] == [(1, cohorts[1][0], "ok", 1), (2, cohorts[2][3], "ok", 1)]
    assert retried[2][0] == 4
    assert len(records(tmp_path)) == 4 * ROUNDS
    assert set(engine.pids) - first
    assert not any(_alive(pid) for pid in first - set(engine.pids))


def test_a_client_that_loses_two_workers_has_failed(plan, engine, undisturbed, troubles, tmp_path):
    _, spy = undisturbed
    client = spy.exchanges[2][1][0].client_id
    (troubles / f"{client}-2").write_text("raise kill")
    outcome = go(plan, engine, folder=tmp_path)
    (failed,) = [x for x in records(tmp_path) if x["status"] == "failed"]
    assert (failed["round"], failed["client"], failed["retries"], failed["bytes_up"]) == (2, client, 1, 0)
    assert failed["reason"] == (
        "the worker raised ZeroDivisionError: division by zero; retried: "
        "the worker was ended by SIGKILL, as it is when memory runs out"
    )
    # It is as if the client had failed by itself: told everything again, its memory that of the time before.
    (troubles / f"{client}-2").write_text("fail")
    by_itself = go(plan)
    assert same_bits(outcome, by_itself)
    assert without_retries(outcome.metrics) == exact(by_itself.metrics)


@pytest.mark.parametrize("answer", ["another client", "a text", "a pair of texts", "damaged"])
def test_a_worker_that_answers_something_else_is_lost(engine, undisturbed, answer):
    wanted = undisturbed[1].exchanges[0]
    worker, first = engine._workers[0], set(engine.pids)
    engine.exchange([wanted[0][0]])  # both have started
    engine.exchange([request for request, _ in wanted])
    whole = worker._pipe

    class Odd:
        """The first answer is another one."""

        def recv(self):
            worker._pipe = whole
            reply, kept = whole.recv()
            if answer == "damaged":
                raise pickle.UnpicklingError("invalid load key")
            strange = replace(reply, client_id=reply.client_id + 1), kept
            return {"another client": strange, "a text": "x", "a pair of texts": ("x", "y")}[answer]

        def __getattr__(self, name):
            return getattr(whole, name)

    worker._pipe = Odd()
    replies = engine.exchange([request for request, _ in wanted])
    assert [reply.client_id for reply in replies] == [request.client_id for request, _ in wanted]
    assert sorted(reply.retries for reply in replies) == [0, 0, 0, 1]
    assert all(reply.blob is not None for reply in replies)
    assert len(first - set(engine.pids)) == 1


# ---- what workers are
def test_workers_do_not_hear_signals_meant_for_the_run(engine):
    for pid in engine.pids:
        (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigBlk")]
        blocked = int(line.split()[1], 16)
        assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


def test_clients_have_the_threads_of_the_plan_in_both_engines(plan, engine):
    request = Request(0, wire.encode(Payload("train", 0, read_weights(SmallNet()))), False)
    before = torch.get_num_threads()
    assert before != plan.threads
    for tried in (engine, InlineEngine(plan)):
        (reply,) = tried.exchange([request])
        assert wire.decode(reply.blob).extras["threads"] == plan.threads
    assert torch.get_num_threads() == before


def test_gpus_are_dealt_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process._devices("cuda", 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert process._devices("cuda:1", 3) == ["cuda:1"] * 3
    assert process._devices("cpu", 2) == ["cpu"] * 2


def test_a_plan_that_cannot_be_handed_over_is_refused(tmp_path):
    plan = small_plan(Remembering(), build_model=lambda: SmallNet())
    with pytest.raises(ConfigError, match=r"^the run cannot be handed to worker processes: .*lambda.*top of a module"):
        ProcessEngine(plan, workers=1, timeout_s=1, folder=tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


class HomeOnly(SmallNet):
    """A network that only the process which runs the rounds can make."""

    def __init__(self):
        if multiprocessing.parent_process() is not None:
            raise OSError("no weights here")
        super().__init__()


def test_workers_that_do_not_start_end_the_run(monkeypatch):
    monkeypatch.setattr(process, "_STARTS", 2)
    plan = small_plan(Remembering(), rounds=1, build_model=HomeOnly)
    engine = ProcessEngine(plan, workers=1, timeout_s=60)
    try:
        with pytest.raises(ClientError) as raised:
            go(plan, engine)
    finally:
        engine.close()
    assert str(raised.value).startswith(
        "a worker process failed to start 2 times: the worker raised OSError: no weights here; its own message is on"
    )


# ---- nothing grows
def test_rounds_leave_nothing_behind(plan, engine):
    """Files, threads, processes and what the store holds are the same after 5 rounds and after 30."""
    held = {}

    def look(record):
        if record["round"] in (5, 29):
            held[record["round"]] = (
                len(os.listdir("/proc/self/fd")),
                threading.active_count(),
                len(_children()),
                sorted(os.listdir(f"/proc/{engine.pids[0]}/fd")),
                len([path for path in engine._store.folder.iterdir() if path.suffix == ".topology"]),
            )

    go(replace(plan, rounds=30, per_round=3), engine, on_round=look)
    assert held[5][:4] == held[29][:4]
    assert held[29][4] <= 6  # at most one for each client


def test_closing_ends_workers_in_the_middle_of_a_client(plan, undisturbed, troubles):
    request = undisturbed[1].exchanges[0][0][0]
    path = troubles / f"{request.client_id}-0"
    path.write_text("hang")
    engine = ProcessEngine(plan, workers=1, timeout_s=600)
    replies = []
    asking = threading.Thread(target=lambda: replies.extend(engine.exchange([request])))
    asking.start()
    while path.read_text():
        time.sleep(0.01)
    (pid,) = engine.pids
    engine.close()
    asking.join()
    assert not _alive(pid)
    assert (replies[0].blob, replies[0].retries) == (None, 0)
    assert replies[0].reason == "the worker was ended by SIGKILL, as it is when memory runs out"


def test_closing_does_not_wait_for_workers_to_start(plan, undisturbed):
    engine = ProcessEngine(plan, workers=1, timeout_s=600)
    replies = []
    asking = threading.Thread(target=lambda: replies.extend(engine.exchange([undisturbed[1].exchanges[0][0][0]])))
    asking.start()
    while engine._idle.qsize():  # until a courier has the worker
        time.sleep(0.01)
    (pid,) = engine.pids
    engine.close()
    asking.join()
    assert not _alive(pid)
    assert replies[0].reason == "the engine was closed"
