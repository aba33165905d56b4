"""Rounds: what is recorded, stopping, and going on to the last bit."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fedsparse
from fedsparse.errors import CheckpointError
from fedsparse.federated import sgd
from fedsparse.federated.checkpoint import Checkpoints
from fedsparse.methods.fedavg import FedAvg
from fedsparse.nn import density
from fedsparse.wire import Payload
from tests.federated.small_run import (
    SmallNet,
    SpyEngine,
    exact,
    go,
    same_bits,
    small_data,
    small_method,
    small_plan,
)

ALL = ("fedavg", "static", "fedtiny", "remembering")
ROUNDS = 8

KEYS = [
    *("round", "kind", "accuracy", "loss", "density", "nnz", "masks_changed", "bytes_down", "bytes_up"),
    *("bytes_down_dense", "bytes_up_dense", "client_seconds", "server_seconds", "peak_bytes", "flops_modelled"),
    *("joules", "clients", "clients_failed", "clients_retried", "clients_folded", "asks_failed", "replies_ignored"),
    "diverged",
    *("flops_exact_modelled", "flops_paper_modelled"),
    *("bytes_down_paper_modelled", "bytes_up_paper_modelled", "memory_weights_modelled", "memory_gradients_modelled"),
    *("memory_optimizer_modelled", "memory_activations_modelled", "memory_adjustment_modelled"),
    *("memory_total_modelled", "memory_paper_modelled"),
]


def records(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.suffix != ".clients")


# ---- records
def test_a_record_has_every_number():
    outcome = go(small_plan(small_method("fedtiny"), rounds=3))
    assert [list(record) for record in outcome.metrics] == [KEYS] * 3
    assert [record["round"] for record in outcome.metrics] == [0, 1, 2]
    assert [record["kind"] for record in outcome.metrics] == ["train", "train", "adjust"]
    assert all(record["client_seconds"] > 0 and record["server_seconds"] > 0 for record in outcome.metrics)
    assert all(record["joules"] is None for record in outcome.metrics)
    json.dumps(outcome.metrics, allow_nan=False)


def test_the_last_record_describes_the_model_that_comes_back():
    plan = small_plan(small_method("fedtiny"), rounds=3)
    outcome = go(plan)
    last = outcome.metrics[-1]
    assert {key: last[key] for key in ("accuracy", "loss")} == sgd.evaluate(outcome.model, plan.data.test)
    assert last["density"] == density(outcome.model)
    assert last["nnz"] == outcome.weights.topology.nnz
    assert outcome.stopped is False


def test_flops_are_three_forward_passes_of_every_sample_and_epoch():
    sizes = (20, 0, 30)
    outcome = go(small_plan(FedAvg(), rounds=1, sizes=sizes, per_round=3))
    forward = 2 * (72 * 64 + 1728 * 16 + 6912 * 4 + 320)
    assert outcome.metrics[0]["flops_modelled"] == 3 * forward * (20 + 30) * 2


def test_evaluation_every_few_rounds_and_at_the_end():
    plan = replace(small_plan(FedAvg(), rounds=5), eval_every=2)
    accuracies = [record["accuracy"] for record in go(plan).metrics]
    assert [accuracy is None for accuracy in accuracies] == [True, False, True, False, False]
    assert accuracies[1] == go(small_plan(FedAvg(), rounds=5)).metrics[1]["accuracy"]


def test_a_loss_that_is_no_number_is_null_and_the_record_says_so(tmp_path):
    class Exploding(FedAvg):
        def aggregate(self, server, updates):
            new = super().aggregate(server, updates)
            return new.with_dense({"11.weight": torch.full((10, 32), 3e38) * (server.round == 1)})

    outcome = go(small_plan(Exploding(), rounds=3), folder=tmp_path, stop_after=2)
    assert [record["diverged"] for record in outcome.metrics] == [False, True]
    assert [record["loss"] is None for record in outcome.metrics] == [False, True]
    refused = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, **refused) for line in lines] == outcome.metrics


def test_watchers_get_each_record_once():
    seen = []
    outcome = go(small_plan(FedAvg(), rounds=3), on_round=seen.append)
    assert seen == outcome.metrics


@pytest.mark.parametrize("name", ALL)
def test_the_global_generator_decides_nothing(name):
    plan = small_plan(small_method(name), rounds=3)
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outcomes.append(go(plan))
    assert same_bits(*outcomes)


class Dropping(SmallNet):
    """The small network with a layer that draws from torch's global generator."""

    def __init__(self):
        super().__init__()
        self[10] = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))


@pytest.mark.parametrize("name", ALL)
def test_dropout_follows_the_seed_of_the_run(name):
    public = small_data((64,), seed=3).train
    plan = small_plan(small_method(name), rounds=2, build_model=Dropping, public=public)
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outcomes.append(go(plan))
    assert same_bits(*outcomes)
    assert not same_bits(outcomes[0], go(replace(plan, seed=8)))


def test_a_stopped_run_with_dropout_goes_on_to_the_same_bits(tmp_path):
    plan = small_plan(small_method("static"), rounds=4, build_model=Dropping)
    go(plan, folder=tmp_path, stop_after=2)
    torch.rand(3)
    assert same_bits(go(plan, folder=tmp_path, resume=True), go(plan))


# ---- stopping and going on
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("stops", [(1, 1, 1), (2,), (3, 2), (7,)])
def test_a_stopped_run_goes_on_to_the_same_bits(name, stops, tmp_path):
    plan = small_plan(small_method(name), rounds=ROUNDS, checkpoint_every=3)
    wanted = go(plan, folder=_folder(tmp_path / "whole"))
    folder = _folder(tmp_path / "parts")
    done = 0
    for stop in stops:
        outcome = go(plan, folder=folder, stop_after=stop, resume=True)
        done += stop
        assert (outcome.stopped, len(outcome.metrics)) == (True, done)
    resumed = go(plan, folder=folder, resume=True)
    assert resumed.stopped is False
    assert same_bits(resumed, wanted)
    assert exact(resumed.metrics) == exact(wanted.metrics)
    for file in ("metrics.jsonl", "clients.jsonl"):
        assert exact(records(folder, file)) == exact(records(tmp_path / "whole", file))


def _folder(path):
    path.mkdir()
    return path


def test_remembering_needs_its_memories():
    """The method used above would end elsewhere if a resume lost either side's memory."""
    plan = small_plan(small_method("remembering"), rounds=ROUNDS)
    wanted = go(plan)

    class Forgetful(SpyEngine):
        def exchange(self, requests):
            if len(self.exchanges) == 4:
                for client in range(6):
                    self._store.commit(client, replace(self._store.kept(client), memory=b""))
            return super().exchange(requests)

    assert not same_bits(go(plan, Forgetful(plan)), wanted)


def test_masks_are_not_sent_again_after_a_resume(tmp_path):
    plan = small_plan(small_method("static"), rounds=3, sizes=(20, 30), per_round=2)
    go(plan, folder=tmp_path, stop_after=2)
    engine = SpyEngine(plan)
    outcome = go(plan, engine, folder=tmp_path, resume=True)
    assert len(engine.exchanges) == 1
    assert outcome.metrics[2]["bytes_down"] == outcome.metrics[1]["bytes_down"] < outcome.metrics[0]["bytes_down"]


def test_a_finished_run_is_only_read(tmp_path):
    plan = small_plan(small_method("fedtiny"), rounds=2)
    wanted = go(plan, folder=tmp_path)
    engine = SpyEngine(plan)
    again = go(plan, engine, folder=tmp_path, resume=True)
    assert engine.exchanges == []
    assert again.metrics == wanted.metrics
    assert same_bits(again, wanted)


def test_a_stop_after_the_last_round_is_no_stop(tmp_path):
    outcome = go(small_plan(FedAvg(), rounds=2), folder=tmp_path, stop_after=2)
    assert (outcome.stopped, len(outcome.metrics)) == (False, 2)


def test_without_resume_a_run_begins_again(tmp_path):
    plan = small_plan(FedAvg(), rounds=2)
    first = go(plan, folder=tmp_path)
    again = go(plan, folder=tmp_path)
    assert exact(again.metrics) == exact(first.metrics)
    assert len(records(tmp_path, "metrics.jsonl")) == 2
    assert len(records(tmp_path, "clients.jsonl")) == 8


def test_a_new_run_does_not_inherit_the_checkpoints_of_an_old_one(tmp_path):
    go(small_plan(FedAvg(), rounds=5), folder=tmp_path)
    (tmp_path / "checkpoints" / "round-000006.partial").write_bytes(b"cut off")
    other = small_plan(FedAvg(), rounds=5, seed=9)
    go(other, folder=tmp_path, stop_after=2)
    assert checkpoints(tmp_path) == ["round-000001.fsp", "round-000002.fsp"]
    resumed, wanted = go(other, folder=tmp_path, resume=True), go(other)
    assert same_bits(resumed, wanted)
    assert exact(resumed.metrics) == exact(wanted.metrics)


def test_another_message_is_no_checkpoint(tmp_path):
    plan = small_plan(FedAvg(), rounds=2)
    Checkpoints(tmp_path / "checkpoints").save(Payload("train", 1), Path.mkdir)
    with pytest.raises(CheckpointError) as raised:
        go(plan, folder=tmp_path, resume=True)
    assert str(raised.value) == "expected a checkpoint to resume from, found a message for the task 'train'"


def test_checkpoints_come_when_they_are_due(tmp_path):
    go(small_plan(FedAvg(), rounds=5, checkpoint_every=2), folder=tmp_path)
    assert checkpoints(tmp_path) == ["round-000004.fsp", "round-000005.fsp"]


def test_a_damaged_checkpoint_costs_rounds_but_no_bit(tmp_path):
    plan = small_plan(small_method("remembering"), rounds=ROUNDS)
    wanted = go(plan)
    go(plan, folder=tmp_path, stop_after=5)
    newest = tmp_path / "checkpoints" / "round-000005.fsp"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match=r"round-000005\.fsp cannot be used"):
        outcome = go(plan, folder=tmp_path, resume=True)
    assert same_bits(outcome, wanted)
    assert exact(records(tmp_path, "metrics.jsonl")) == exact(wanted.metrics)


def test_without_any_readable_checkpoint_records_stay_as_they_are(tmp_path):
    plan = small_plan(FedAvg(), rounds=4)
    go(plan, folder=tmp_path, stop_after=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for name in checkpoints(tmp_path):
        (tmp_path / "checkpoints" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be used"), pytest.raises(CheckpointError, match="start the run again"):
        go(plan, folder=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


# ---- kill -9
PROGRAM = """
import sys
from pathlib import Path

import torch

from tests.federated.small_run import go, small_method, small_plan

torch.set_num_threads(1)
plan = small_plan(small_method(sys.argv[1]), rounds=int(sys.argv[3]), checkpoint_every=2)
go(plan, folder=Path(sys.argv[2]), resume=True, on_round=lambda record: print(record["round"], flush=True))
"""


def _started(name, folder, rounds):
    root = Path(fedsparse.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", PROGRAM, name, str(folder), str(rounds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(name, tmp_path, rng):
    rounds = 10
    plan = small_plan(small_method(name), rounds=rounds, checkpoint_every=2)
    wanted = go(plan, folder=_folder(tmp_path / "whole"))
    folder = _folder(tmp_path / "killed")
    killed = 0
    for _ in range(3):
        process = _started(name, folder, rounds)
        for _ in range(int(rng.integers(1, 5))):
            process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.05)))
        process.kill()
        process.communicate()
        killed += process.returncode != 0
    assert killed >= 2
    process = _started(name, folder, rounds)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for file in ("metrics.jsonl", "clients.jsonl"):
        assert exact(records(folder, file)) == exact(records(tmp_path / "whole", file))
    finished = go(plan, folder=folder, resume=True)
    assert same_bits(finished, wanted)
