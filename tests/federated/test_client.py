"""The client's half: what it holds, what it answers, what it remembers."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import cross_entropy

import fedsparse as fs
from fedsparse import wire
from fedsparse.errors import PatternError
from fedsparse.federated import seeds, sgd
from fedsparse.federated.client import ClientHost, HostedClient
from fedsparse.federated.engines.base import Request
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.store import ClientStore
from fedsparse.methods.base import Method, SparseMethod
from fedsparse.methods.roles import client_task
from fedsparse.nn import read_weights, sparse_layers
from fedsparse.pattern import Topology
from fedsparse.wire import Payload
from tests.federated.small_run import CLIENT, SmallNet, small_data, small_method, small_plan


def sparse_weights(density=0.2):
    return read_weights(fs.sparsify(SmallNet(), density))


def request(client, weights=None, *, task="train", known=(), extras=None, back=True, round=0):
    blob = wire.encode(Payload(task, round, weights, extras or {}), known=known)
    return Request(client, blob, back)


@pytest.fixture
def plan():
    return small_plan(small_method("static"), sizes=(20, 0, 30), per_round=3)


class Clients:
    """A host with the store that an engine keeps beside it."""

    def __init__(self, plan):
        self.store = ClientStore()
        self.host = ClientHost(plan, self.store.topologies)

    def serve(self, request):
        reply, kept = self.host.serve(request, self.store.kept(request.client_id))
        self.store.commit(request.client_id, kept)
        return reply


@pytest.fixture
def host(plan):
    return Clients(plan)


# ---- training
def test_a_client_answers_with_what_sgd_makes_of_the_download(host, plan):
    weights = sparse_weights()
    reply = host.serve(request(2, weights, round=5))
    model = fs.sparsify(SmallNet(), 0.2)
    sgd.train(model, plan.data.client(2), CLIENT, epochs=2, generator=seeds.generator(plan.seed, 5, 2, "batches"))
    wanted = dict(read_weights(model).items())
    answer = wire.decode(reply.blob, topologies={weights.topology.digest: weights.topology})
    assert (answer.task, answer.round, dict(answer.extras)) == ("train", 5, {})
    got = dict(answer.weights.items())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert (reply.reason, reply.client_id) == ("", 2)
    assert reply.seconds.value > 0
    assert reply.seconds.source == "measured"


def test_nothing_of_one_client_reaches_the_next(plan):
    weights = sparse_weights()
    alone, after = Clients(plan), Clients(plan)
    after.serve(request(0, read_weights(SmallNet(seed=3))))
    assert after.serve(request(2, weights)).blob == alone.serve(request(2, weights)).blob


def test_an_answer_without_weights_where_none_are_asked_for(host):
    weights = sparse_weights()
    reply = host.serve(request(0, weights, back=False))
    assert wire.decode(reply.blob).weights is None
    assert len(reply.blob) < 100


# ---- topologies held
def test_a_topology_travels_once_and_then_by_reference(host):
    weights = sparse_weights()
    digest = weights.topology.digest
    first = host.serve(request(0, weights))
    second = host.serve(request(0, weights, known={digest}))
    assert first.blob == second.blob
    stranger = host.serve(request(2, weights, known={digest}))
    assert stranger.blob is None
    assert stranger.reason == f"weights: topology {digest} is sent by reference but not held here; ask for it in full"


def test_only_the_last_topology_is_held(host):
    old, new = sparse_weights(0.2), sparse_weights(0.3)
    host.serve(request(0, old))
    host.serve(request(0, new))
    assert host.serve(request(0, new, known={new.topology.digest})).blob is not None
    assert host.serve(request(0, old, known={old.topology.digest})).blob is None


# ---- failures
def test_a_client_without_samples(host):
    reply = host.serve(request(1, sparse_weights()))
    assert (reply.blob, reply.reason) == (None, "the client has no samples")


def test_damaged_bytes_are_the_clients_failure(host):
    sent = request(0, sparse_weights())
    damaged = bytearray(sent.blob)
    damaged[-1] ^= 1
    reply = host.serve(Request(0, bytes(damaged), True))
    assert (reply.blob, reply.reason) == (None, "the checksum does not match: the message was damaged on its way")


@pytest.mark.parametrize("task", ["nothing", "aggregate", "build", "__init__", "name"])
def test_only_client_tasks_can_be_asked_for(host, task):
    reply = host.serve(request(0, sparse_weights(), task=task))
    assert (reply.blob, reply.reason) == (None, f"method 'static' has no client task {task!r}")


def test_a_mistake_in_a_method_is_not_taken_for_a_lost_client():
    class Wrong(Method):
        name = "wrong"

        @client_task
        def train(self, client):
            return {"ratio": 1 / (client.id - client.id)}

    with pytest.raises(ZeroDivisionError):
        Clients(small_plan(Wrong())).serve(request(0, read_weights(SmallNet())))


# ---- memory
class Remembering(SparseMethod):
    name = "remembering"

    @client_task
    def remember(self, client):
        client.memory["number"] = client.memory.get("number", 0) + client.extras["number"]
        client.memory["weights"] = read_weights(client.model)
        return {"number": client.memory["number"]}


def number(reply):
    return wire.decode(reply.blob).extras["number"]


def test_memory_stays_with_its_client_and_survives_a_restart(tmp_path):
    plan = small_plan(Remembering(density=0.2))
    host, weights = Clients(plan), sparse_weights()
    digest = weights.topology.digest

    def ask(where, client, value, known=()):
        extras = {"number": value}
        return number(where.serve(request(client, weights, task="remember", extras=extras, known=known, back=False)))

    assert [ask(host, 0, 3), ask(host, 0, 4), ask(host, 2, 5)] == [3, 7, 5]
    host.store.save(tmp_path / "saved")
    restarted = Clients(plan)
    restarted.store.restore(tmp_path / "saved")
    assert [restarted.store.kept(client) == host.store.kept(client) for client in range(3)] == [True] * 3
    # client 0 holds the topology it was sent before, client 1 has never been asked
    assert [ask(restarted, 0, 1, known={digest}), ask(restarted, 2, 1), ask(restarted, 1, 1)] == [8, 6, 1]


class Stumbling(Remembering):
    name = "stumbling"

    @client_task
    def stumble(self, client):
        client.memory["number"] = 100
        raise ClientFailure("gone")

    @client_task
    def hoard(self, client):
        client.memory["number"] = {1, 2}
        return {}


@pytest.mark.parametrize(("task", "reason"), [("stumble", "gone"), ("hoard", "extras/number: a set cannot be sent")])
def test_a_client_that_fails_keeps_what_it_kept(task, reason):
    host = Clients(small_plan(Stumbling(density=0.2)))
    old, new = sparse_weights(0.2), sparse_weights(0.3)
    host.serve(request(0, old, task="remember", extras={"number": 3}))
    failed = host.serve(request(0, new, task=task, back=False))
    assert failed.blob is None
    assert failed.reason.startswith(reason)
    # The old masks still serve as a reference, the new ones do not.
    known = {old.topology.digest}
    assert number(host.serve(request(0, old, task="remember", extras={"number": 1}, known=known, back=False))) == 4
    assert host.serve(request(0, new, task="remember", known={new.topology.digest}, back=False)).blob is None


# ---- gradients of pruned weights
def hosted(plan, client_id=0):
    model = fs.sparsify(SmallNet(), 0.2)
    return HostedClient(plan, Payload("train", 3), client_id=client_id, model=model, memory={})


def dense_gradients(client, plan):
    """Gradients of every position of every weight on the batch that the client probes."""
    model = fs.densify(fs.sparsify(SmallNet(), 0.2)).train()
    batch = next(sgd.batches(len(client.data), CLIENT.batch_size, seeds.generator(plan.seed, 3, client.id, "probe")))
    x, y = client.data.batch(batch)
    cross_entropy(model(x), y).backward()
    return {name: p.grad.flatten() for name, p in model.named_parameters()}


def test_the_largest_gradients_of_pruned_weights(plan):
    client = hosted(plan)
    counts = {"0.weight": 0, "3.weight": 7, "6.weight": 40}
    found = client.top_pruned_gradients(counts)
    assert set(found) == {"3.weight", "6.weight"}
    wanted = dense_gradients(client, plan)
    for name, vector in found.items():
        gradient = wanted[name].masked_fill(fs.masks(client.model)[name].flatten(), 0)
        best = gradient.abs().sort(descending=True, stable=True).indices[: counts[name]].sort().values
        assert vector.size == gradient.numel()
        assert torch.equal(vector.indices, best)
        assert torch.allclose(vector.values, gradient[best], rtol=1e-4, atol=1e-7)


def test_probing_changes_nothing(plan):
    client = hosted(plan)
    before = {name: tensor.clone() for name, tensor in client.model.state_dict().items()}
    client.top_pruned_gradients({"6.weight": 3})
    after = client.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None or not p.grad.any() for p in client.model.parameters())
    assert not any(layer.watcher for layer in sparse_layers(client.model).values())


def test_probing_an_unknown_layer(plan):
    with pytest.raises((KeyError, PatternError), match="nowhere"):
        hosted(plan).top_pruned_gradients({"nowhere.weight": 1})


def test_generators_of_a_client(plan):
    one, other = hosted(plan, 0), hosted(plan, 2)
    assert one.rng("a").initial_seed() == seeds.generator(plan.seed, 3, 0, "a").initial_seed()
    assert one.rng("a").initial_seed() != other.rng("a").initial_seed()
    assert len(small_data((20, 0, 30)).client(2)) == len(other.data) == 30
    assert one.rng("a").initial_seed() != one.rng("b").initial_seed()


# ---- training in parts
def trained(plan, *parts, samples=None):
    client = hosted(plan)
    for epochs in parts:
        client.sgd(epochs=epochs, samples=samples)
    return dict(read_weights(client.model).items())


def test_two_calls_take_the_steps_of_one(plan):
    whole, parts, nothing_between = trained(plan, 3), trained(plan, 1, 2), trained(plan, 1, 0, 2)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert all(torch.equal(whole[name], nothing_between[name]) for name in whole)
    # The second epoch is shuffled anew and goes on with the momentum of the first.
    again = hosted(plan)
    again.sgd(epochs=1)
    other = HostedClient(plan, Payload("train", 3), client_id=0, model=again.model, memory={})
    other.sgd(epochs=2)
    assert not torch.equal(dict(read_weights(again.model).items())["3.weight"], whole["3.weight"])


def test_the_runs_epochs_are_known_and_the_default(plan):
    assert hosted(plan).epochs == CLIENT.epochs == 2
    assert torch.equal(trained(plan, None)["3.weight"], trained(plan, 2)["3.weight"])


def test_training_on_some_samples_sees_no_others(plan):
    some = torch.tensor([3, 5, 8, 11])
    got = trained(plan, 2, samples=some)
    model = fs.sparsify(SmallNet(), 0.2)
    data = plan.data.client(0).subset(some)
    sgd.train(model, data, CLIENT, epochs=2, generator=seeds.generator(plan.seed, 3, 0, "batches"))
    wanted = dict(read_weights(model).items())
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_adopted_masks_carry_values_and_momentum(plan):
    client = hosted(plan)
    client.sgd(epochs=1)
    layer = sparse_layers(client.model)["3.weight"]
    before, momentum = layer.pattern, client._steps.state[layer.values]["momentum_buffer"]
    old, moving = layer.weight, before.scatter(momentum)
    grown = (~before.mask()).flatten().nonzero().squeeze(1)[:5]
    client.adopt(Topology({"3.weight": before.exchanged(torch.arange(5), grown)}))
    after = layer.pattern
    kept = after.mask() & before.mask()
    assert int(kept.sum()) == before.nnz - 5
    assert torch.equal(layer.weight, old * kept)
    assert torch.equal(after.scatter(client._steps.state[layer.values]["momentum_buffer"]), moving * kept)
    client.sgd(epochs=1)
    assert (layer.weight.flatten()[grown] != 0).all()


def test_probing_some_samples(plan):
    client, some = hosted(plan), torch.arange(4, 9)
    found = client.top_pruned_gradients({"6.weight": 4}, samples=some)["6.weight"]
    model = fs.densify(fs.sparsify(SmallNet(), 0.2)).train()
    order = next(sgd.batches(5, CLIENT.batch_size, seeds.generator(plan.seed, 3, 0, "probe")))
    x, y = client.data.batch(some[order])
    cross_entropy(model(x), y).backward()
    pruned = model[6].weight.grad.flatten().masked_fill(fs.masks(client.model)["6.weight"].flatten(), 0)
    assert torch.equal(found.indices, pruned.abs().sort(descending=True, stable=True).indices[:4].sort().values)


def test_a_single_sample_cannot_be_probed_through_batch_norm(plan):
    with pytest.raises(ClientFailure, match="of which batch norm needs two or more"):
        hosted(plan).top_pruned_gradients({"6.weight": 4}, samples=torch.tensor([2]))


def test_dense_gradients_can_be_caught_at_each_step(plan):
    client = hosted(plan)
    layer, dense = sparse_layers(client.model)["3.weight"], fs.densify(fs.sparsify(SmallNet(), 0.2)).train()
    positions = next(sgd.batches(len(client.data), CLIENT.batch_size, client.rng("batches")))
    x, y = client.data.batch(positions)
    cross_entropy(dense(x), y).backward()
    caught = []

    @contextmanager
    def around():
        with fs.topk_pruned_gradient(layer, layer.pattern.size - layer.nnz) as pruned:
            yield
        gradient = layer.pattern.scatter(layer.values.grad).flatten()
        caught.append(gradient.index_copy(0, pruned.indices, pruned.gradients))

    client.sgd(epochs=1, around_step=around)
    assert len(caught) == 2  # 20 samples in batches of 16
    assert torch.allclose(caught[0], dense[3].weight.grad.flatten(), rtol=1e-4, atol=1e-6)
