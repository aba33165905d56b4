"""FedMef: its penalty, rates and drops by hand, its local training in float64, and the FedTiny it is without them."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsparse import densify
from fedsparse.errors import ClientError, ConfigError
from fedsparse.federated import seeds, sgd
from fedsparse.federated.client import HostedClient
from fedsparse.methods.fedmef import FedMef, extrusion_rate, lowest
from fedsparse.methods.roles import Download, Update
from fedsparse.nn import NormalisedConv2d, dense_gradients, read_weights, sparse_layers, topology, write_weights
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire import Payload, SparseVector
from tests.federated.small_run import CLIENT, SmallNet, exact, go, same_bits, small_data, small_method, small_plan
from tests.methods.local import ROUND, SEED

PLAIN = {"penalty": 0.0, "keep": None, "norm_free": False}


# ---- rates and marks, by hand
@pytest.mark.parametrize(
    ("step", "profile"), [(0, 1.0), (10, 0.857143), (20, 0.666667), (30, 0.4), (39, 0.04878), (40, 0.0)]
)
def test_the_rate_falls_with_the_budget(step, profile):
    # An infinite norm leaves eta_0 p(j).
    assert extrusion_rate(0.0, 0.1, norm=float("inf"), step=step, steps=40) == pytest.approx(0.1 * profile, abs=1e-7)


@pytest.mark.parametrize(("norm", "step", "rate"), [(5.0, 10, 0.0845669), (0.5, 30, 0.05), (0.0, 3, 0.05)])
def test_the_rate_is_the_larger_of_schedule_and_extrusion(norm, step, rate):
    assert extrusion_rate(0.05, 0.1, norm=norm, step=step, steps=40) == pytest.approx(rate, abs=1e-7)


def test_the_rate_of_small_marked_weights():
    assert extrusion_rate(0.0, 0.1, norm=0.5, step=30, steps=40) == pytest.approx(0.0097967, abs=1e-7)


def test_marked_are_the_lowest_of_the_kept_ones():
    values = {"a": torch.tensor([3.0, -0.1, 0.2, -0.1, 4.0]), "b": torch.tensor([1.0])}
    patterns = Topology({n: Pattern.from_flat((1, 5), torch.arange(len(v))) for n, v in values.items()})
    marked = lowest(patterns, values, {"a": 2, "b": 0})
    assert {name: places.tolist() for name, places in marked.items()} == {"a": [1, 3], "b": []}


# ---- what is dropped
TOPOLOGY = Topology.from_masks({n: (torch.arange(8) < 4).view(2, 4) for n in ("a.weight", "b.weight")})
BEFORE = {name: torch.tensor([0.9, -0.1, 0.3, -0.5]) for name in TOPOLOGY}
AFTER = {"a.weight": torch.tensor([0.05, -0.2, 0.3, -0.5]), "b.weight": torch.tensor([0.9, -0.01, 0.3, -0.5])}
METHOD = FedMef(adjust_every=10, adjust_until=100, swap_fraction=0.5, keep=None)


def adjusted(method, round=50):
    """Round 50 of 100: a quarter of four kept weights in each layer. Marked is number 1 of both."""
    top = {name: SparseVector(8, torch.tensor([5, 7]), torch.tensor([0.1, -2.0])) for name in TOPOLOGY}
    updates = [Update(0, 3, Weights(TOPOLOGY, AFTER, {}), {"top": top})]
    server = SimpleNamespace(round=round, weights=Weights(TOPOLOGY, BEFORE, {}), memory={})
    server.weights = method.aggregate(server, updates)
    new = method.adjust(server, updates)
    return new, server


def test_the_smallest_averaged_weights_are_dropped_and_the_overlap_is_noted():
    new, server = adjusted(METHOD)
    assert new["a.weight"].flat.tolist() == [1, 2, 3, 7]
    assert new["b.weight"].flat.tolist() == [0, 2, 3, 7]
    assert METHOD.metrics(server) == {"marked_overlap": 0.5}
    assert server.memory.keys() == {"overlap"}


def test_marked_weights_are_dropped_whatever_became_of_them():
    new, server = adjusted(replace(METHOD, drop="marked"))
    assert [new[name].flat.tolist() for name in new] == [[0, 2, 3, 7]] * 2
    assert METHOD.metrics(server) == {"marked_overlap": 1.0}


def test_other_rounds_neither_mark_nor_drop():
    for round in (0, 45, 100):
        new, server = adjusted(METHOD, round)
        assert new is None
        assert METHOD.metrics(server) == {"marked_overlap": None}
        assert server.memory == {}
    nothing, server = adjusted(replace(METHOD, swap_fraction=0.0))
    assert nothing == TOPOLOGY
    assert METHOD.metrics(server) == {"marked_overlap": None}


def test_what_is_asked_and_what_is_refused():
    server = SimpleNamespace(round=50, weights=Weights(TOPOLOGY, BEFORE, {}))
    sent = METHOD.download(server, 0)
    assert sent.extras == {"counts": {"a.weight": 1, "b.weight": 1}}
    with pytest.raises(ClientError, match="'top' is missing"):
        METHOD.check(sent, Update(0, 5, None, {}))
    METHOD.check(Download(server.weights), Update(0, 5, None, {}))
    server.round = 51
    assert METHOD.download(server, 0).extras == {}
    assert METHOD.costs(TOPOLOGY, 50).numbers_up == 2 * 2
    assert METHOD.costs(TOPOLOGY, 51).numbers_up == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("score", "best"), ("penalty", -1.0), ("peak_lr", 0.0), ("drop", "all"), ("gamma", 0.0), ("keep", 0.0)],
)
def test_settings_are_checked(setting, value):
    with pytest.raises(ConfigError, match=f"fedmef: {setting} = "):
        FedMef(**{setting: value})


# ---- local training
def trained(method, *, round=ROUND):
    """Client 0 before and after its training, and its answer."""
    torch.set_num_threads(1)
    plan = small_plan(method, client=replace(CLIENT, epochs=1, momentum=0.0), seed=SEED)
    server = SimpleNamespace(weights=read_weights(plan.network()), model=plan.network())
    server.rng = lambda purpose: seeds.generator(SEED, purpose)
    weights = method.start(server)
    counts = method.swap_counts(weights.topology, round)
    extras = {"counts": counts} if method.adjusts(round) else {}
    model = plan.network()
    write_weights(model, weights)
    before = copy.deepcopy(model)
    client = HostedClient(plan, Payload("train", round, weights, extras), client_id=0, model=model, memory={})
    return before, client, method.train(client), counts


def steps_by_hand(model, counts, *, penalty, peak):
    """One epoch of plain SGD in float64 on the dense masked network, in the words of the paper."""
    masks = {name: layer.mask for name, layer in sparse_layers(model).items()}
    marked = lowest(topology(model), {name: layer.values for name, layer in sparse_layers(model).items()}, counts)
    places = {name: layer.pattern.flat[marked[name]] for name, layer in sparse_layers(model).items()}
    dense, data = densify(copy.deepcopy(model)).double().train(), small_data().client(0)
    batches = list(sgd.batches(len(data), CLIENT.batch_size, seeds.generator(SEED, ROUND, 0, "batches")))
    for step, positions in enumerate(batches):
        x, y = data.batch(positions)
        low = torch.cat([dense.get_parameter(name).flatten()[p] for name, p in places.items()])
        rate = CLIENT.lr
        if peak is not None:
            beta = (2 * torch.sigmoid(low.detach().norm()) - 1) * peak
            rate = max(rate, float(beta) * (2 * len(batches) - 2 * step) / (2 * len(batches) - step))
        dense.zero_grad()
        (cross_entropy(dense(x.double()), y) + penalty * (low * low).sum()).backward()
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                parameter -= rate * parameter.grad * masks.get(name, 1)
    return dense


@pytest.mark.parametrize("peak", [None, 0.5])
@pytest.mark.parametrize("norm_free", [False, True])
def test_extrusion_is_the_papers_in_float64(norm_free, peak):
    method = small_method("fedmef", penalty=0.3, keep=None, norm_free=norm_free, peak_lr=peak)
    before, client, _, counts = trained(method)
    expected = steps_by_hand(before, counts, penalty=0.3, peak=peak)
    without = steps_by_hand(before, counts, penalty=0.0, peak=None)
    for name, layer in sparse_layers(client.model).items():
        found, wanted = layer.weight.double(), expected.get_parameter(name).detach()
        torch.testing.assert_close(found, wanted * layer.mask, rtol=1e-3, atol=1e-5)
        assert float((wanted - without.get_parameter(name).detach()).abs().max()) > 1e-3


def test_other_rounds_train_plainly():
    method = small_method("fedmef", penalty=0.3, keep=None, peak_lr=0.5)
    _, client, extras, _ = trained(method, round=ROUND + 1)
    _, plain, _, _ = trained(replace(method, penalty=0.0, peak_lr=None), round=ROUND + 1)
    assert extras == {}
    assert all(torch.equal(p, q) for p, q in zip(client.model.parameters(), plain.model.parameters(), strict=True))


def test_a_heavy_penalty_drains_what_is_marked():
    norms = []
    for penalty in (0.0, 3.0):
        before, client, _, counts = trained(small_method("fedmef", penalty=penalty, keep=None))
        values = {name: layer.values for name, layer in sparse_layers(before).items()}
        marked = lowest(topology(before), values, counts)
        low = [layer.values.detach()[marked[name]] for name, layer in sparse_layers(client.model).items()]
        norms.append(float(torch.cat(low).norm()))
    assert norms[1] < 0.6 * norms[0]


def test_activations_are_pruned_in_training_only_where_asked():
    _, exact_client, _, _ = trained(small_method("fedmef", keep=None))
    _, whole, _, _ = trained(small_method("fedmef", keep=1.0))
    _, pruned, _, _ = trained(small_method("fedmef", keep=0.3))
    layers = sparse_layers(pruned.model).values()
    assert {(layer.activation_pruning.keep, layer.activation_pruning.rule) for layer in layers} == {(0.3, "global")}
    one, two, three = (
        torch.cat([p.detach().flatten() for p in c.model.parameters()]) for c in (exact_client, whole, pruned)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert float((one - three).abs().max()) > 1e-3
    x = small_data().client(0).x[:3]
    model = pruned.model.eval()
    y = model(x)
    for layer in layers:
        layer.activation_pruning = None
    assert torch.equal(model(x), y)


def test_candidates_are_the_largest_gradients_of_the_normalised_filters():
    """Positions and values as `topk_pruned_gradient` finds them on the probe's mini-batch; see tests/nn."""
    method = small_method("fedmef", keep=None, penalty=0.0)
    _, client, extras, counts = trained(method)
    assert set(extras["top"]) == {name for name, count in counts.items() if count}
    data, caught = small_data().client(0), {}
    x, y = data.batch(next(sgd.batches(len(data), CLIENT.batch_size, seeds.generator(SEED, ROUND, 0, "probe"))))
    client.model.train()
    with dense_gradients(sparse_layers(client.model), caught.__setitem__):
        cross_entropy(client.model(x), y).backward()
    for name, found in extras["top"].items():
        layer = sparse_layers(client.model)[name]
        pruned = caught[name].abs().masked_fill(layer.mask, -1).flatten()
        assert set(found.indices.tolist()) == set(pruned.topk(counts[name]).indices.tolist())
        torch.testing.assert_close(found.values, caught[name].flatten()[found.indices], rtol=1e-3, atol=1e-6)


# ---- runs
def test_without_its_own_terms_it_is_fedtiny_on_all_layers_without_selection():
    mine = go(small_plan(small_method("fedmef", score="magnitude", **PLAIN), rounds=6))
    theirs = go(small_plan(small_method("fedtiny", candidates=1, blocks=1), rounds=6))
    assert same_bits(mine, theirs)
    overlaps = [record.pop("marked_overlap") for record in mine.metrics]
    assert exact(mine.metrics) == exact(theirs.metrics)
    assert [overlap is not None for overlap in overlaps] == [False, False, True, False, True, False]


@pytest.mark.parametrize("drop", ["magnitude", "marked"])
def test_records_have_the_overlap_of_adjusting_rounds(drop, tmp_path):
    method = small_method("fedmef", penalty=0.1, drop=drop)
    outcome = go(small_plan(method, rounds=5), folder=tmp_path)
    overlaps = [json.loads(line)["marked_overlap"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert overlaps == [record["marked_overlap"] for record in outcome.metrics]
    assert [overlap is None for overlap in overlaps] == [True, True, False, True, False]
    assert all(0 < overlaps[r] <= 1 for r in (2, 4))
    if drop == "marked":
        assert (overlaps[2], overlaps[4]) == (1.0, 1.0)


def test_turnover_is_twice_the_swaps_in_every_layer():
    method = small_method("fedmef")
    outcome = go(small_plan(method, rounds=3))
    masks = outcome.weights.topology  # counts never change
    assert outcome.metrics[2]["masks_changed"] == 2 * sum(method.swap_counts(masks, 2).values())


def test_its_network_has_no_batch_norm_and_is_the_same_wherever_it_is_made():
    plan = small_plan(FedMef(gamma=1.5))
    one, two = plan.network(), plan.network()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in one.modules())
    assert {m.gamma for m in one.modules() if isinstance(m, NormalisedConv2d)} == {1.5}
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert type(FedMef(norm_free=False).build(SmallNet())[0]) is nn.Conv2d
