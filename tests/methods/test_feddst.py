"""FedDST's swap and merge against numbers worked out by hand, and against dense networks in float64."""

from types import SimpleNamespace

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ConfigError
from fedsparse.methods.feddst import FedDST
from fedsparse.methods.roles import Update
from fedsparse.nn import SparseLinear, read_weights, topology
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import SparseVector
from tests.federated.small_run import SpyEngine, go, small_method, small_plan
from tests.methods.local import ROUND, first, hosted, kept, positions, probe_gradients, start


# ---- clients
def largest(vector, k):
    best = vector.values.abs().topk(k).indices.sort().values
    return SparseVector(vector.size, vector.indices[best], vector.values[best])


def test_a_large_gradient_of_a_kept_weight_is_not_looked_at():
    # w = (.1, 1, -, -), g = (100, 0, 2, 3), one swap: the smallest goes, and of the pruned ones the fourth comes.
    layer = torch.nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.1, 1.0, 0.0, 0.0]])
    model = torch.nn.Sequential(SparseLinear.from_dense(layer, torch.tensor([[True, True, False, False]])))
    adopted, trained_for, pruned = [], [], SparseVector(4, torch.tensor([2, 3]), torch.tensor([2.0, 3.0]))
    client = SimpleNamespace(
        round=2,
        epochs=5,
        model=model,
        sgd=lambda epochs: trained_for.append(epochs),
        top_pruned_gradients=lambda counts: {name: largest(pruned, k) for name, k in counts.items()},
        adopt=adopted.append,
    )
    assert FedDST(adjust_every=2, swap_fraction=1.0, adjust_until=10**6).train(client) == {}
    (new,) = adopted
    assert new["0.weight"].flat.tolist() == [1, 3]
    assert trained_for == [4, 1]


def trained(method, weights, **changed):
    client = hosted(method, weights, **changed)
    assert method.train(client) == {}
    return read_weights(client.model)


def test_masks_move_by_magnitudes_and_gradients_after_the_first_epochs():
    method, weights = small_method("feddst", epochs_before=2), start()
    got = trained(method, weights)
    before = hosted(method, weights)
    before.sgd(epochs=2)
    middle = read_weights(before.model)
    counts = method.swap_counts(weights.topology, ROUND)
    assert sum(counts.values()) > 100
    for name, gradient in probe_gradients(middle).items():
        mask = kept(middle, name)
        dropped = first(-middle.weight(name).flatten().abs(), counts[name], mask)
        grown = first(gradient.abs(), counts[name], ~mask)
        assert positions(got, name) == positions(middle, name) - dropped | grown
        # Nothing was left to train: what stays is as it was, what came is 0.
        assert torch.equal(got.weight(name), middle.weight(name) * got.topology[name].mask())


def test_the_last_epoch_trains_what_has_grown():
    method, weights = small_method("feddst"), start()
    got = trained(method, weights)
    first_half = trained(small_method("feddst", epochs_before=1), weights, epochs=1)
    assert got.topology == first_half.topology != weights.topology
    for name in weights.topology:
        grown = kept(got, name) & ~kept(weights, name)
        assert int(grown.sum()) == method.swap_counts(weights.topology, ROUND)[name]
        assert bool((got.weight(name).flatten()[grown] != 0).all())


@pytest.mark.parametrize(
    ("setting", "epochs", "wanted"),
    [(None, 5, (4, 1)), (None, 1, (0, 1)), (0, 5, (0, 5)), (2, 5, (2, 3)), (9, 5, (5, 0))],
)
def test_epochs_around_the_swap(setting, epochs, wanted):
    assert FedDST(epochs_before=setting).epochs_around(SimpleNamespace(epochs=epochs)) == wanted


def test_other_rounds_train_on_the_masks_they_were_sent():
    weights = start()
    assert trained(small_method("feddst"), weights, round=3).topology == weights.topology


# ---- server
def client_update(client, samples, mask, values):
    found = Topology.from_masks({"a.weight": torch.tensor([mask], dtype=torch.bool)})
    return Update(client, samples, Weights(found, {"a.weight": torch.tensor(values)}, {}), {})


def test_the_largest_of_the_merged_weights_stay():
    # {0, 1} and {1, 2} with merged values (.1, .9, .5): two stay
    method = FedDST(adjust_every=1, adjust_until=10)
    updates = [client_update(0, 1, [1, 1, 0, 0], [0.1, 1.2]), client_update(1, 3, [0, 1, 1, 0], [0.8, -0.5])]
    merged = method.aggregate(None, updates)
    assert merged.values["a.weight"].tolist() == pytest.approx([0.1, 0.9, -0.5])
    new = method.adjust(SimpleNamespace(round=1, weights=merged), updates)
    assert new["a.weight"].flat.tolist() == [1, 2]
    assert method.adjust(SimpleNamespace(round=10, weights=merged), updates) is None


def test_of_equal_weights_the_lowest_positions_stay():
    method = FedDST(adjust_every=1, adjust_until=10)
    updates = [client_update(0, 1, [1, 1, 0, 0], [0.5, 0.5]), client_update(1, 1, [0, 0, 1, 1], [0.5, -0.5])]
    new = method.adjust(SimpleNamespace(round=1, weights=method.aggregate(None, updates)), updates)
    assert new["a.weight"].flat.tolist() == [0, 1]


def test_a_round_ends_with_the_largest_masked_means_of_its_uploads():
    plan = small_plan(small_method("feddst"), rounds=4)
    engine = SpyEngine(plan)
    go(plan, engine)
    known = {}
    for exchange in engine.exchanges:
        down = wire.decode(exchange[0][0].blob, topologies=known).weights
        known[down.topology.digest] = down.topology
    sent, after = (wire.decode(engine.exchanges[r][0][0].blob, topologies=known).weights for r in (2, 3))
    samples = [len(plan.data.client(request.client_id)) for request, _ in engine.exchanges[2]]
    uploads = [wire.decode(reply.blob, topologies=known).weights for _, reply in engine.exchanges[2]]
    assert len({u.topology.digest for u in uploads}) == len(uploads)
    for name in sent.topology:
        shares = torch.stack([n * kept(u, name).double() for n, u in zip(samples, uploads, strict=True)])
        values = torch.stack([u.weight(name).flatten().double() for u in uploads])
        union = shares.sum(0) > 0
        merged = torch.where(union, (shares * values).sum(0) / shares.sum(0), 0.0)
        assert positions(after, name) == first(merged.abs(), sent.topology[name].nnz, union)
        wanted = merged.view(sent.topology[name].shape) * after.topology[name].mask()
        assert torch.allclose(after.weight(name).double(), wanted, rtol=1e-6, atol=1e-9)


def test_masks_start_random_or_by_magnitude():
    found = {}
    for score in ("random", "magnitude"):
        outcome = go(small_plan(small_method("feddst", score=score, adjust_until=0), rounds=1))
        found[score] = outcome.weights.topology
    static = go(small_plan(small_method("static", score="magnitude"), rounds=1)).weights.topology
    assert found["magnitude"] == static != found["random"]
    assert found["random"].counts == static.counts
    assert topology(go(small_plan(small_method("static", score="random"), rounds=1)).model) == found["random"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "snip"}, "feddst: score = 'snip'; expected one of magnitude, random"),
        ({"epochs_before": -1}, "feddst: epochs_before = -1; expected at least 0, or nothing"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError) as raised:
        FedDST(**settings)
    assert str(raised.value) == message
