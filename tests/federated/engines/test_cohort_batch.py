"""Several clients at a time on `inline`: the numbers of one at a time, and what each client trains by itself."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsparse import wire
from fedsparse.data import FederatedDataset
from fedsparse.errors import ConfigError
from fedsparse.federated.engines.base import Request
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.methods.base import Method
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.roles import client_task
from fedsparse.nn import read_weights
from fedsparse.wire import Payload
from tests.federated.small_run import (
    CLIENT,
    Remembering,
    SmallNet,
    bits,
    exact,
    go,
    same_bits,
    small_data,
    small_method,
    small_plan,
)

NO_OTHER = "no other client trains under the same masks"
NO_STEP = "no mini-batch is of the size that the others have"
MORE = "its task does more than train and return"


def error(one, other):
    """Largest relative error of a tensor of two runs."""
    mine, theirs = bits(one), bits(other)
    assert mine.keys() == theirs.keys()
    return max(float((mine[n].double() - theirs[n].double()).norm() / mine[n].double().norm()) for n in mine)


def lines(folder):
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def told(folder, *names):
    return [tuple(line[name] for name in names) for line in lines(folder)]


# ---- the numbers of one client at a time
@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("static", [5, 5, 5]),
        ("fedavg", [5, 5, 5]),
        ("feddst", [5, 5, 0]),  # adjusts in round 2, looking at its model between epochs
        ("fedrts", [5, 5, 0]),
        ("fedtiny", [5, 5, 0]),
    ],
)
def test_training_together_gives_the_numbers_of_training_alone(name, folded, tmp_path):
    """Five of six clients of 25 to 48 samples, three at a time; float32 sums in another order over 3 x 2 epochs."""
    public = small_data().train.subset(torch.arange(0, 220, 4)) if name == "fedtiny" else None
    plan = small_plan(small_method(name), per_round=5, public=public)
    (tmp_path / "alone").mkdir()
    alone = go(plan, folder=tmp_path / "alone")
    together = go(plan, InlineEngine(plan, cohort_batch=3), folder=tmp_path)
    assert error(alone, together) < 1e-5
    assert [record["clients_folded"] for record in together.metrics] == folded
    assert all(record["clients_folded"] == 0 for record in alone.metrics)
    for column in ("bytes_down", "bytes_up", "nnz", "masks_changed", "clients", "clients_failed"):
        assert [m[column] for m in alone.metrics] == [m[column] for m in together.metrics], column
    facts = ("round", "client", "exchange", "samples", "status", "reason", "bytes_down", "bytes_up", "retries")
    assert told(tmp_path, *facts) == told(tmp_path / "alone", *facts)


@pytest.mark.parametrize(
    ("client", "weights"),
    [
        (replace(CLIENT, optimizer="adam", lr=0.003), 1e-3),
        (replace(CLIENT, optimizer="adamw", lr=0.003, weight_decay=0.1), 1e-3),
        (replace(CLIENT, weight_decay=0.01), 1e-5),
        (replace(CLIENT, batch_size=1000), 1e-5),
    ],
    ids=["adam", "adamw", "decay", "whole"],
)
def test_every_client_keeps_an_optimiser_of_its_own(client, weights):
    """Adam divides by the root of a mean square, so that gradients near 0 carry their rounding into full steps."""
    sizes = (40, 40, 40, 33, 48) if client.batch_size < 1000 else (40, 40, 40, 40, 40)
    plan = small_plan(small_method("static"), per_round=5, sizes=sizes, client=client)
    alone, together = go(plan), go(plan, InlineEngine(plan, cohort_batch=5))
    assert together.metrics[-1]["clients_folded"] == 5
    assert error(alone, together) < weights


def test_steps_on_equal_mini_batches_are_taken_together(tmp_path):
    """Batches of 16: 40, 40 | 33, 17 are 16 16 8, twice, and 16 16, 16, the last sample being skipped; two epochs."""
    plan = small_plan(small_method("static"), rounds=1, sizes=(33, 40, 17, 40, 9), per_round=5)
    go(plan, InlineEngine(plan, cohort_batch=2), folder=tmp_path)
    assert told(tmp_path, "client", "steps_folded", "alone") == [
        (0, 2, ""), (1, 6, ""), (2, 2, ""), (3, 6, ""), (4, 0, NO_OTHER),
    ]  # fmt: skip


def test_a_client_smaller_than_a_mini_batch_takes_no_step_with_larger_ones(tmp_path):
    plan = small_plan(small_method("static"), rounds=1, sizes=(40, 9), per_round=2)
    together = go(plan, InlineEngine(plan, cohort_batch=2), folder=tmp_path)
    assert told(tmp_path, "steps_folded", "alone") == [(0, NO_STEP), (0, NO_STEP)]
    assert error(go(plan), together) < 1e-5


def test_seconds_and_memory_are_shared():
    plan = small_plan(small_method("static"), sizes=(64, 32, 32), per_round=3)
    weights = read_weights(plan.network())
    requests = [Request(k, wire.encode(Payload("train", 0, weights)), True) for k in range(3)]
    replies = InlineEngine(plan, cohort_batch=3).exchange(requests)
    assert [reply.client_id for reply in replies] == [0, 1, 2]
    assert all(reply.seconds.source == "measured" and reply.seconds.value > 0 for reply in replies)
    if replies[0].peak_bytes.value is not None:
        parameters = 4 * sum(parameter.numel() for parameter in plan.network().parameters())
        assert all(reply.peak_bytes.value > parameters for reply in replies)


def test_three_networks_train_on_half_of_their_own_samples():
    @dataclass(frozen=True, kw_only=True)
    class Half(Method):
        name: ClassVar[str] = "half"

        @client_task
        def train(self, client):
            chosen = torch.randperm(len(client.data), generator=client.rng("half"))[: len(client.data) // 2]
            client.sgd(samples=chosen, epochs=3)
            return {"samples": len(chosen)}

    plan = small_plan(Half(), sizes=(40, 40, 40), per_round=3, rounds=1)
    together = go(plan, InlineEngine(plan, cohort_batch=3))
    assert together.metrics[0]["clients_folded"] == 3
    assert error(go(plan), together) < 1e-5


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path):
    plan = small_plan(small_method("feddst"), rounds=4, per_round=5)
    whole = go(plan, InlineEngine(plan, cohort_batch=3))
    go(plan, InlineEngine(plan, cohort_batch=3), folder=tmp_path, stop_after=1)
    resumed = go(plan, InlineEngine(plan, cohort_batch=3), folder=tmp_path, resume=True)
    assert same_bits(whole, resumed)
    assert exact(whole.metrics) == exact(resumed.metrics)


# ---- what is run by itself, with the bits of one client at a time
class Dropping(nn.Module):
    """A model whose forward draws random numbers that no layer shows."""

    def __init__(self):
        super().__init__()
        self.net = SmallNet()

    def forward(self, x):
        return self.net(F.dropout(x, 0.3, self.training))


class Mixing(nn.Module):
    """A model that puts channels of two branches behind each other, which tells networks apart no more."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        return self.out(torch.cat([self.a(x), self.b(x)], dim=1).mean(dim=(2, 3)))


def layer_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.Linear(12, 10))


@pytest.mark.parametrize(
    ("method", "build_model", "reason"),
    [
        (FedAvg(), Dropping, "the model computes networks side by side with relative errors of"),
        (FedAvg(), Mixing, "the model computes networks side by side with relative errors of"),
        (FedAvg(), layer_norm, "2 is a LayerNorm with weight, bias, which cannot be folded"),
        (small_method("fedrandprune"), SmallNet, NO_OTHER),
        (small_method("fedprox"), SmallNet, MORE),
        (small_method("fedpaq"), SmallNet, MORE),
        (Remembering(), SmallNet, MORE),
    ],
    ids=["dropout", "mixing", "layernorm", "masks", "penalty", "fedpaq", "remembering"],
)
def test_what_cannot_be_folded_runs_alone_and_says_why(method, build_model, reason, tmp_path):
    plan = small_plan(method, rounds=2, build_model=build_model)
    together = go(plan, InlineEngine(plan, cohort_batch=4), folder=tmp_path)
    assert same_bits(together, go(plan))
    assert [record["clients_folded"] for record in together.metrics] == [0, 0]
    for steps, alone in told(tmp_path, "steps_folded", "alone"):
        assert steps == 0
        assert alone.startswith(reason)


def _by_reference(client):
    model = client.model
    before = read_weights(model).dense["0.weight"]
    client.sgd()
    return {"moved": read_weights(model).dense["0.weight"] - before}


def _twice(client):
    client.sgd(epochs=1)
    client.sgd(epochs=1)
    return {}


def _then_looks(client):
    client.sgd(epochs=1)
    seen = client.model[0].weight.detach().clone()
    client.sgd(epochs=1)
    return {"seen": seen}


@pytest.mark.parametrize("work", [_by_reference, _twice, _then_looks])
def test_a_task_always_sees_the_model_trained(work):
    class Looking(Method):
        name = "looking"

        @client_task
        def train(self, client):
            return work(client)

    plan = small_plan(Looking(), rounds=1)
    requests = [
        Request(k, wire.encode(Payload("train", 0, read_weights(SmallNet()))), True)
        for k in range(4)
    ]  # fmt: skip
    alone, together = InlineEngine(plan).exchange(requests), InlineEngine(plan, cohort_batch=4).exchange(requests)
    assert [reply.blob for reply in alone] == [reply.blob for reply in together]
    assert {reply.alone for reply in together} == {MORE}


# ---- faults hurt one client
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("spoilt", [1, 40])
def test_a_client_whose_loss_is_not_finite_fails_alone(place, spoilt, tmp_path):
    """`spoilt` samples are NaN: all of them stop the first step, one stops some step of the first epoch."""
    data = small_data((40, 40, 33))
    x = data.train.x.clone()
    x[data.clients[place][:spoilt]] = torch.nan
    plan = small_plan(small_method("static"), rounds=2, sizes=(40, 40, 33), per_round=3)
    plan = replace(plan, data=FederatedDataset(replace(data.train, x=x), data.test, data.clients, data.name))
    (tmp_path / "alone").mkdir()
    alone = go(plan, folder=tmp_path / "alone")
    together = go(plan, InlineEngine(plan, cohort_batch=3), folder=tmp_path)
    facts = ("client", "status", "reason")
    assert told(tmp_path, *facts) == told(tmp_path / "alone", *facts)
    reason = "the training loss became nan; a smaller learning rate may help"
    assert [line[2] for line in told(tmp_path, *facts)] == 2 * [reason if k == place else "" for k in range(3)]
    assert error(alone, together) < 1e-5
    assert all(steps > 0 for client, steps in told(tmp_path, "client", "steps_folded") if client != place)


def test_a_client_without_samples_and_one_with_damaged_bytes_fail_alone():
    plan = small_plan(small_method("static"), sizes=(40, 0, 40, 40), per_round=4)
    blob = wire.encode(Payload("train", 0, read_weights(plan.network())))
    damaged = blob[:-1] + bytes([blob[-1] ^ 1])
    requests = [Request(k, damaged if k == 2 else blob, True) for k in range(4)]
    alone, together = InlineEngine(plan).exchange(requests), InlineEngine(plan, cohort_batch=4).exchange(requests)
    assert [reply.reason for reply in alone] == [reply.reason for reply in together]
    assert [reply.blob is None for reply in together] == [False, True, True, False]
    assert [reply.steps_folded for reply in together] == [6, 0, 0, 6]
    assert [len(reply.blob or b"") for reply in alone] == [len(reply.blob or b"") for reply in together]


def test_a_mistake_in_a_method_is_not_taken_for_a_lost_client():
    class Wrong(Method):
        name = "wrong"

        @client_task
        def train(self, client):
            client.sgd()
            return {"ratio": 1 / (client.id - client.id)}

    plan = small_plan(Wrong())
    with pytest.raises(ZeroDivisionError):
        go(plan, InlineEngine(plan, cohort_batch=4))


def test_fewer_than_one_client_at_a_time_are_refused():
    with pytest.raises(ConfigError, match="cohort_batch = 0: expected at least 1"):
        InlineEngine(small_plan(FedAvg()), cohort_batch=0)
