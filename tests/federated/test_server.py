"""The server's half: what is counted, what is sent, and what becomes of bad uploads."""

import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ClientError, FedsparseError, WireError
from fedsparse.federated import seeds
from fedsparse.federated.engines.base import Reply
from fedsparse.federated.judging import check_masks
from fedsparse.methods.aggregation import mean
from fedsparse.methods.base import Method
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.roles import Download, Update, client_task
from fedsparse.methods.static import Static
from fedsparse.nn import masks, read_weights, set_masks, sparse_layers, write_weights
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire import Payload, SparseVector
from fedsparse.wire.positions import pack
from tests.federated.small_run import (
    CLIENT,
    SmallNet,
    SpyEngine,
    exact,
    go,
    same_bits,
    small_method,
    small_plan,
)

ALL = ("fedavg", "static", "fedtiny", "fedsgc")


def records(folder, name="clients.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# ---- bytes
@pytest.mark.parametrize("name", ALL)
def test_every_byte_is_the_length_of_a_message(name, tmp_path):
    plan = small_plan(small_method(name), rounds=4)
    engine = SpyEngine(plan)
    outcome = go(plan, engine, folder=tmp_path)
    pairs = [pair for exchange in engine.exchanges for pair in exchange]
    lines = records(tmp_path)
    assert len(lines) == len(pairs)
    for line, (request, reply) in zip(lines, pairs, strict=True):
        assert (line["client"], line["bytes_down"], line["bytes_up"]) == (
            request.client_id,
            len(request.blob),
            len(reply.blob),
        )
        assert line["exchange"] == ("train" if request.weights_back else "ask")
        assert (line["status"], line["reason"]) == ("ok", "")
    for record in outcome.metrics:
        mine = [line for line in lines if line["round"] == record["round"]]
        assert record["bytes_down"] == sum(line["bytes_down"] for line in mine)
        assert record["bytes_up"] == sum(line["bytes_up"] for line in mine)
        assert record["client_seconds"] == pytest.approx(sum(line["seconds"] for line in mine))
        assert record["peak_bytes"] == max(line["peak_bytes"] for line in mine)
    assert sum(record["bytes_down"] for record in outcome.metrics) == sum(len(request.blob) for request, _ in pairs)
    assert records(tmp_path, "metrics.jsonl") == outcome.metrics


def test_the_dense_reference_is_what_dense_averaging_sends():
    dense = go(small_plan(FedAvg(), rounds=3, per_round=6)).metrics
    sparse = go(small_plan(small_method("static"), rounds=3, per_round=6)).metrics
    for mine, theirs in zip(sparse, dense, strict=True):
        assert mine["bytes_up_dense"] == theirs["bytes_up_dense"] == theirs["bytes_up"]
        assert mine["bytes_down_dense"] == theirs["bytes_down_dense"]
        assert mine["bytes_up"] < 0.4 * mine["bytes_up_dense"]
    # The first message also says that there is no topology: one byte a client.
    assert [r["bytes_down"] - r["bytes_down_dense"] for r in dense] == [6, 0, 0]


def positions_bytes(topology):
    return sum(len(pack(pattern.flat.numpy(), pattern.size)) for pattern in topology.values())


def sizes_down(engine):
    """Bytes of each download by client, training exchanges only."""
    found = {}
    for exchange in engine.exchanges:
        for request, _ in exchange:
            if request.weights_back:
                found.setdefault(request.client_id, []).append(len(request.blob))
    return found


def test_masks_travel_once_where_they_never_change():
    plan = small_plan(small_method("static"), rounds=4, sizes=(20, 30, 25), per_round=3)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    weights = outcome.weights
    full = len(wire.encode(Payload("train", 1, weights)))
    short = len(wire.encode(Payload("train", 1, weights), known={weights.topology.digest}))
    assert sizes_down(engine) == {client: [full, short, short, short] for client in range(3)}
    # Beside positions, a pattern has its name, granularity and shape: a few tens of bytes a layer.
    assert 0 < full - short - positions_bytes(weights.topology) < 3 * 40


def test_a_client_that_comes_later_gets_the_mask_then():
    plan = small_plan(small_method("static"), rounds=6, per_round=2)
    engine = SpyEngine(plan)
    go(plan, engine)
    sizes = sizes_down(engine)
    assert len(sizes) > 2
    full = max(max(values) for values in sizes.values())
    for values in sizes.values():
        assert values[0] == full
        assert all(value < full for value in values[1:])


def test_masks_travel_again_after_they_moved():
    plan = small_plan(small_method("fedtiny", candidates=1), rounds=6, sizes=(20, 30), per_round=2)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    moved = [record["round"] for record in outcome.metrics if record["masks_changed"]]
    assert moved == [2, 4]
    blobs = [exchange[0][0].blob for exchange in engine.exchanges]
    complete = [_is_complete(blob) for blob in blobs]
    assert complete == [True, False, False, True, False, True]


def _is_complete(blob):
    try:
        wire.decode(blob)
    except WireError:
        return False
    return True


# ---- failures
@dataclass(frozen=True, kw_only=True)
class Spoiling(Method):
    """One client spoils its upload in one round."""

    name: ClassVar[str] = "spoiling"
    kind: str = "weights"
    client: int = 1
    round: int = 1

    @client_task
    def train(self, client):
        client.sgd()
        if (client.id, client.round) != (self.client, self.round):
            return {}
        if self.kind == "weights":
            client.model[3].weight.data[2, 1, 0, 0] = math.inf
        elif self.kind == "buffer":
            client.model[4].running_var[0] = math.nan
        elif self.kind == "vector":
            return {"top": {"a": SparseVector(4, torch.tensor([2]), torch.tensor([math.nan]))}}
        elif self.kind == "number":
            return {"loss": math.inf}
        return {}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("weights", "weights.3.weight"),
        ("buffer", "weights.4.running_var"),
        ("vector", "extras.top.a"),
        ("number", "extras.loss"),
    ],
)
def test_an_upload_that_is_not_finite_is_dropped_and_the_run_goes_on(kind, place, tmp_path):
    plan = small_plan(Spoiling(kind=kind), rounds=3, sizes=(20, 30, 40), per_round=3)
    engine = SpyEngine(plan)
    outcome = go(plan, engine, folder=tmp_path)
    assert [(r["clients"], r["clients_failed"]) for r in outcome.metrics] == [(3, 0), (2, 1), (3, 0)]
    (failed,) = [line for line in records(tmp_path) if line["status"] == "failed"]
    assert (failed["round"], failed["client"], failed["exchange"]) == (1, 1, "train")
    assert failed["reason"] == f"the upload contains NaN or infinite numbers in {place}"
    assert failed["bytes_up"] == len(engine.exchanges[1][1][1].blob) > 0
    assert outcome.metrics[1]["bytes_up"] == sum(len(reply.blob) for _, reply in engine.exchanges[1])
    assert all(bool(torch.isfinite(t).all()) for _, t in outcome.weights.items() if t.is_floating_point())

    # What the clients got in round 2 is the mean of the other two.
    known = {outcome.weights.topology.digest: outcome.weights.topology}
    replies = [wire.decode(reply.blob, topologies=known).weights for _, reply in engine.exchanges[1]]
    wanted = mean([Update(0, 20, replies[0], {}), Update(2, 40, replies[2], {})])
    got = wire.decode(engine.exchanges[2][0][0].blob, topologies=known).weights
    assert all(torch.equal(got.dense[name], tensor) for name, tensor in wanted.dense.items())


@pytest.mark.parametrize("name", ALL)
def test_a_client_without_samples_is_passed_over(name, tmp_path):
    """The others train as if it did not exist: the weights of the average are renormalised."""
    method = small_method(name)
    with_nobody = small_plan(method, rounds=4, sizes=(20, 30, 40, 0), per_round=4)
    without = small_plan(method, rounds=4, sizes=(20, 30, 40), per_round=3)
    engine = SpyEngine(with_nobody)
    outcome, wanted = go(with_nobody, engine, folder=tmp_path), go(without)
    assert same_bits(outcome, wanted)
    assert [r["accuracy"] for r in outcome.metrics] == [r["accuracy"] for r in wanted.metrics]
    assert [r["clients_failed"] for r in outcome.metrics] == [1] * 4
    lines = [line for line in records(tmp_path) if line["client"] == 3]
    assert {line["reason"] for line in lines} == {"the client has no samples"}
    assert {(line["status"], line["samples"], line["bytes_up"]) for line in lines} == {("failed", 0, 0)}
    # It may have lost what it was sent, so it is told everything each time.
    for exchange in engine.exchanges:
        for request, _ in exchange:
            if request.client_id == 3 and request.weights_back:
                assert _is_complete(request.blob)


def test_a_client_whose_loss_explodes_is_passed_over(tmp_path):
    plan = small_plan(FedAvg(), rounds=1, client=replace(CLIENT, lr=1e30))
    with pytest.raises(ClientError):
        go(plan, folder=tmp_path)
    reasons = {line["reason"] for line in records(tmp_path)}
    assert reasons == {"the training loss became nan; a smaller learning rate may help"}


def test_too_few_clients_end_the_run_and_leave_the_last_checkpoint(tmp_path):
    method = Spoiling(round=2)
    plan = small_plan(method, rounds=4, sizes=(20, 30, 40), per_round=3, min_clients=3)
    with pytest.raises(ClientError) as raised:
        go(plan, folder=tmp_path)
    assert str(raised.value) == (
        "round 2: 2 of 3 clients delivered a usable update for 'train', engine.min_clients asks for 3; "
        "clients.jsonl says why each failed"
    )
    assert [r["round"] for r in records(tmp_path, "metrics.jsonl")] == [0, 1]
    # With a lower limit the same folder goes on, and the failed attempt leaves no trace.
    lenient = small_plan(method, rounds=4, sizes=(20, 30, 40), per_round=3, min_clients=2)
    resumed, wanted = go(lenient, folder=tmp_path, resume=True), go(lenient)
    assert exact(resumed.metrics) == exact(wanted.metrics)
    assert same_bits(resumed, wanted)
    assert len(records(tmp_path)) == 4 * 3


class LossyEngine(SpyEngine):
    """Loses or garbles the reply of one client in one exchange."""

    def __init__(self, plan, *, exchange, client, garble=None):
        super().__init__(plan)
        self._where, self._garble = (exchange, client), garble

    def exchange(self, requests):
        replies = super().exchange(requests)
        exchange, client = self._where
        if len(self.exchanges) - 1 != exchange:
            return replies
        changed = [r if r.client_id != client else self._spoilt(r) for r in replies]
        return changed

    def _spoilt(self, reply):
        blob = None if self._garble is None else self._garble(reply.blob)
        reason = "" if blob is not None else "no answer within 5 s"
        return Reply(reply.client_id, blob, reason, reply.seconds, reply.peak_bytes)


@pytest.mark.parametrize(
    ("garble", "reason"),
    [
        (None, "no answer within 5 s"),
        (lambda blob: blob[:-1], "the header announces a body"),
        (lambda blob: blob[:60] + bytes([blob[60] ^ 8]) + blob[61:], "the checksum does not match"),
    ],
)
def test_a_reply_that_is_lost_or_garbled(garble, reason, tmp_path):
    plan = small_plan(small_method("static"), rounds=3, sizes=(20, 30), per_round=2)
    engine = LossyEngine(plan, exchange=1, client=1, garble=garble)
    outcome = go(plan, engine, folder=tmp_path)
    assert [r["clients_failed"] for r in outcome.metrics] == [0, 1, 0]
    (failed,) = [line for line in records(tmp_path) if line["status"] == "failed"]
    assert failed["reason"].startswith(reason)
    # Without an answer the mask may not have arrived; a garbled one proves that it did.
    assert _is_complete(engine.exchanges[2][1][0].blob) == (garble is None)


class Confused(SpyEngine):
    """Delivers the first client's reply again with the last call of an exchange, and one of nobody with the first."""

    def exchange(self, requests):
        replies = super().exchange(requests)
        first = self.exchanges[0][0][1]
        strange = [replace(first, client_id=99)] if len(self.exchanges) == 1 else []
        again = [first] if any(request.client_id == 4 for request in requests) else []
        return [*strange, *again, *replies]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_replies_to_nothing_are_recorded_after_all_answers(at_once, tmp_path):
    plan = small_plan(FedAvg(), rounds=1, sizes=(20, 30, 25, 22, 24), per_round=5)
    outcome = go(plan, Confused(plan), folder=tmp_path, at_once=at_once)
    assert outcome.metrics[0]["replies_ignored"] == 2
    lines = records(tmp_path)
    assert outcome.metrics[0]["bytes_up"] == sum(line["bytes_up"] for line in lines)
    ignored = {line["client"]: line["reason"] for line in lines if line["status"] == "ignored"}
    assert ignored[99] == "the client was not asked in this exchange"
    if at_once == 5:  # asked together, it is the client's second answer
        assert ignored[0] == "the client has answered already"
        assert [line["client"] for line in lines] == [0, 0, 1, 2, 3, 4, 99]
    else:
        assert ignored[0] == "the client was asked in another part of this exchange"
        assert [line["client"] for line in lines] == [0, 1, 2, 3, 4, 99, 0]
    assert same_bits(outcome, go(plan))


def test_fedtiny_survives_a_client_lost_in_the_middle_of_the_selection(tmp_path):
    plan = small_plan(small_method("fedtiny"), rounds=2, sizes=(20, 30, 25), per_round=3)
    for exchange in (0, 1):
        outcome = go(plan, LossyEngine(plan, exchange=exchange, client=1), folder=tmp_path)
        assert [r["clients"] for r in outcome.metrics] == [3, 3]
        failed = [line for line in records(tmp_path) if line["status"] == "failed"]
        assert [(line["exchange"], line["client"]) for line in failed] == [("ask", 1)]


def test_an_upload_of_another_topology_is_refused(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Wandering(Static):
        name: ClassVar[str] = "wandering"

        @client_task
        def train(self, client):
            if client.id == 1:
                set_masks(client.model, {"3.weight": ~masks(client.model)["3.weight"]})
            return {}

    outcome = go(small_plan(Wandering(density=0.2), rounds=1, sizes=(20, 30), per_round=2), folder=tmp_path)
    assert outcome.metrics[0]["clients_failed"] == 1
    assert records(tmp_path)[1]["reason"] == "the uploaded weights have another topology than the ones sent"


def _with_dense(message, **changed):
    dense = {**message.weights.dense, **changed}
    kept = {name: tensor for name, tensor in dense.items() if tensor is not None}
    return replace(message, weights=Weights(message.weights.topology, message.weights.values, kept))


def _garbled(change, topology):
    """Turns a reply's blob into that of the changed message."""

    def garble(blob):
        message = wire.decode(blob, topologies={topology.digest: topology})
        return wire.encode(change(message), known={topology.digest})

    return garble


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: replace(m, weights=None), "the upload has no weights"),
        (lambda m: replace(m, round=4), "the upload answers 'train' of round 4, 'train' of round 1 was asked for"),
        (lambda m: replace(m, task="adapt"), "the upload answers 'adapt' of round 1, 'train' of round 1 was asked for"),
        (lambda m: _with_dense(m, **{"1.bias": None}), "'1.bias' is in the sent weights only"),
        (lambda m: _with_dense(m, other=torch.ones(1)), "'other' is in the upload only"),
        (
            lambda m: _with_dense(m, **{"1.bias": torch.ones(1)}),
            "'1.bias' has shape (8,) in the sent weights, but (1,) in the upload",
        ),
        (
            lambda m: _with_dense(m, **{"1.bias": torch.ones(8).double()}),
            "'1.bias' was sent as torch.float32, the upload has torch.float64",
        ),
    ],
)
def test_an_upload_that_does_not_fit_is_dropped_and_the_run_goes_on(change, reason, tmp_path):
    plan = small_plan(small_method("static"), rounds=3, sizes=(20, 30), per_round=2)
    topology = go(plan).weights.topology
    engine = LossyEngine(plan, exchange=1, client=1, garble=_garbled(change, topology))
    outcome = go(plan, engine, folder=tmp_path)
    assert [r["clients_failed"] for r in outcome.metrics] == [0, 1, 0]
    (failed,) = [line for line in records(tmp_path) if line["status"] == "failed"]
    assert (failed["round"], failed["client"], failed["reason"]) == (1, 1, reason)


# ---- masks that clients change
@dataclass(frozen=True, kw_only=True)
class Roaming(Static):
    """Clients answer with masks of their own; the server keeps those of the lowest client."""

    name: ClassVar[str] = "roaming"
    client_masks: ClassVar[bool] = True
    shrink: int = 0
    first: int = 0

    def adjusts(self, round):
        return round >= self.first

    @client_task
    def train(self, client):
        client.sgd(epochs=1)
        pattern = sparse_layers(client.model)["3.weight"].pattern
        kept = torch.randperm(pattern.size, generator=client.rng("mask"))[: pattern.nnz - self.shrink].sort().values
        client.adopt(Topology({"3.weight": Pattern.from_flat(pattern.shape, kept)}))
        client.sgd(epochs=1)
        return {}

    def aggregate(self, _, updates):
        return updates[0].weights


class Shrinking(Roaming):
    client_counts: ClassVar[bool] = True


def test_masks_that_clients_change_come_back_in_full_and_are_not_taken_for_held(tmp_path):
    plan = small_plan(Roaming(density=0.2), rounds=4, sizes=(20, 30), per_round=2)
    engine = SpyEngine(plan)
    outcome = go(plan, engine, folder=tmp_path)
    assert [r["clients_failed"] for r in outcome.metrics] == [0] * 4
    assert all(r["masks_changed"] > 0 for r in outcome.metrics)
    topologies = {}
    for exchange in engine.exchanges:
        for request, reply in exchange:
            # Every download moved to masks that the client was never sent, though client 0 had made them itself.
            assert _is_complete(request.blob)
            assert _is_complete(reply.blob)
            sent, back = (wire.decode(blob).weights.topology for blob in (request.blob, reply.blob))
            assert back != sent
            assert back.counts == sent.counts
            topologies[request.client_id] = sent
        assert topologies[0] == topologies[1]
    assert topologies.keys() == {0, 1}
    assert all(engine.kept(client).held == topology.digest for client, topology in topologies.items())


def test_a_run_whose_clients_change_masks_resumes_to_the_same_bits(tmp_path):
    plan = small_plan(Roaming(density=0.2), rounds=4, per_round=2)
    wanted = go(plan)
    go(plan, folder=tmp_path, stop_after=2)
    resumed = go(plan, folder=tmp_path, resume=True)
    assert same_bits(resumed, wanted)
    assert exact(resumed.metrics) == exact(wanted.metrics)


def test_masks_are_the_clients_own_in_adjusting_rounds_only(tmp_path):
    with pytest.raises(ClientError, match="round 0: 0 of 2 clients"):
        go(small_plan(Roaming(density=0.2, first=1), rounds=2, sizes=(20, 30), per_round=2), folder=tmp_path)
    assert {r["reason"] for r in records(tmp_path)} == {"the uploaded weights have another topology than the ones sent"}


def test_other_counts_need_the_methods_permission(tmp_path):
    plan = small_plan(Roaming(density=0.2, shrink=5), rounds=1, sizes=(20, 30), per_round=2)
    with pytest.raises(ClientError):
        go(plan, folder=tmp_path)
    kept = Roaming(density=0.2).initial_topology(SmallNet(), "magnitude", torch.Generator())["3.weight"].nnz
    reasons = {line["reason"] for line in records(tmp_path)}
    assert reasons == {f"'3.weight' was sent with {kept} kept weights, the upload has {kept - 5}"}
    outcome = go(replace(plan, method=Shrinking(density=0.2, shrink=5)))
    assert outcome.weights.topology["3.weight"].nnz == kept - 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: Topology({n: t[n] for n in reversed(list(t))}),
            "the upload prunes 6.weight, 3.weight, 0.weight; ",
        ),
        (lambda t: Topology({**t, "0.weight": _turned(t["0.weight"])}), "'0.weight' has shape (8, 1, 3, 3) in the s"),
    ],
)
def test_masks_of_other_weights_are_refused_even_where_clients_may_change_them(change, reason, tmp_path):
    def garble(blob):
        message = wire.decode(blob)
        topology = change(message.weights.topology)
        weights = Weights(topology, {n: message.weights.values[n] for n in topology}, message.weights.dense)
        return wire.encode(replace(message, weights=weights))

    plan = small_plan(Roaming(density=0.2), rounds=1, sizes=(20, 30), per_round=2)
    outcome = go(plan, LossyEngine(plan, exchange=0, client=1, garble=garble), folder=tmp_path)
    assert outcome.metrics[0]["clients_failed"] == 1
    assert records(tmp_path)[1]["reason"].startswith(reason)


def _turned(pattern):
    return Pattern.from_flat((1, 8, 3, 3), pattern.flat)


def test_masks_in_another_unit_are_refused():
    class Block:
        def __str__(self):
            return "block:4"

    pattern = Pattern.from_flat((2, 4), torch.arange(4))
    sent, uploaded = Topology({"a": pattern}), Topology({"a": replace(pattern, granularity=Block())})
    with pytest.raises(FedsparseError) as raised:
        check_masks(uploaded, sent, own_counts=True)
    assert str(raised.value) == "'a' was sent with granularity element, the upload has block:4"


@dataclass(frozen=True, kw_only=True)
class Keeping(Method):
    """Clients are sent weights once and go on with what they remember; one answers in another shape."""

    name: ClassVar[str] = "keeping"

    def download(self, server, _):
        return Download(server.weights if server.round == 0 else None)

    @client_task
    def train(self, client):
        if client.round:
            write_weights(client.model, client.memory["weights"])
        client.sgd()
        client.memory["weights"] = read_weights(client.model)
        if client.round == 2 and client.id == 1:
            client.model[11] = torch.nn.Linear(32, 9)
        return {}


def test_clients_that_are_sent_no_weights_answer_with_their_own_and_are_checked_too(tmp_path):
    plan = small_plan(Keeping(), rounds=3, sizes=(20, 30), per_round=2)
    outcome = go(plan, folder=tmp_path)
    assert [r["clients"] for r in outcome.metrics] == [2, 2, 1]
    assert (
        records(tmp_path)[-1]["reason"]
        == "'11.weight' has shape (10, 32) in the sent weights, but (9, 32) in the upload"
    )
    assert outcome.metrics[1]["bytes_down"] < 200 < outcome.metrics[0]["bytes_down"]


# ---- extras
@dataclass(frozen=True, kw_only=True)
class Judging(Method):
    """Refuses what one client answers."""

    name: ClassVar[str] = "judging"

    @client_task
    def train(self, client):
        return {"number": client.id}

    def check(self, sent, update):
        assert sent.weights is not None
        if update.extras["number"] == 1:
            raise ClientError("the upload is from number 1")


def test_an_answer_that_the_method_refuses_is_that_clients_failure(tmp_path):
    outcome = go(small_plan(Judging(), rounds=1, sizes=(20, 30, 25), per_round=3), folder=tmp_path)
    assert (outcome.metrics[0]["clients"], outcome.metrics[0]["clients_failed"]) == (2, 1)
    assert [line["reason"] for line in records(tmp_path)] == ["", "the upload is from number 1", ""]


# ---- what a method sees
def test_the_samples_of_all_clients_are_known():
    seen = []

    class Asking(FedAvg):
        def aggregate(self, server, updates):
            seen.append(server.num_samples)
            return super().aggregate(server, updates)

    go(small_plan(Asking(), rounds=1, sizes=(20, 30, 25), per_round=1))
    assert seen == [75]


def test_generators_of_the_server_depend_on_round_and_purpose():
    seen = {}

    class Drawing(FedAvg):
        def aggregate(self, server, updates):
            seen[server.round] = (server.rng("a").initial_seed(), server.rng("b").initial_seed(), list(server.cohort))
            return super().aggregate(server, updates)

    go(small_plan(Drawing(), rounds=2))
    assert seen == {
        round: (
            seeds.generator(7, round, "server", "a").initial_seed(),
            seeds.generator(7, round, "server", "b").initial_seed(),
            seeds.cohort(7, round, clients=6, size=4),
        )
        for round in (0, 1)
    }


def test_changes_to_the_servers_model_are_not_kept():
    class Scribbling(FedAvg):
        def aggregate(self, server, updates):
            for parameter in server.model.parameters():
                parameter.data.fill_(99.0)
            return super().aggregate(server, updates)

        def start(self, server):
            server.model[0].weight.data.fill_(7.0)
            return server.weights

    assert same_bits(go(small_plan(Scribbling(), rounds=2)), go(small_plan(FedAvg(), rounds=2)))
