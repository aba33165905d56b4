"""FedRTS against the numbers of its equations worked out by hand, and against a plain float64 replay of a run."""

from types import SimpleNamespace

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ClientError, ConfigError
from fedsparse.federated import seeds
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.methods.fedrts import FedRTS, core
from fedsparse.methods.roles import Download, Update
from fedsparse.nn import read_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.pruning import cosine_share
from fedsparse.wire import IndexSet
from tests.federated.small_run import SmallNet, SpyEngine, go, same_bits, small_data, small_method, small_plan
from tests.methods.local import ROUND, first, hosted, kept, probe_gradients, start

SIZE, ACTIVE = 6, 2


def weights_of(*values):
    """One layer of six weights, the first two of which are kept."""
    topology = Topology.from_masks({"w": (torch.arange(SIZE) < len(values)).view(2, 3)})
    return Weights(topology, {"w": torch.tensor(values)}, {})


def server(aggregate, round, *, prior=1.0):
    memory = {"posterior": {"w": {"alpha": torch.full((SIZE,), prior), "beta": torch.full((SIZE,), prior)}}}
    rng = lambda purpose: seeds.generator(0, round, purpose)  # noqa: E731
    return SimpleNamespace(round=round, weights=aggregate, memory=memory, rng=rng)


def belief(server):
    found = server.memory["posterior"]["w"]
    return found["alpha"].tolist(), found["beta"].tolist()


def votes(*positions):
    return {"votes": {"w": IndexSet(SIZE, torch.tensor(positions, dtype=torch.int64))}}


def test_the_core_is_of_the_largest_magnitudes():
    assert core(torch.tensor([0.5, -2.0, 1.0, 2.0]), 2).tolist() == [0, 1, 0, 1]
    assert core(torch.ones(3), 1).tolist() == [1, 0, 0]
    assert core(torch.ones(3), 0).tolist() == [0, 0, 0]


def test_the_posterior_of_kept_weights_in_a_round_without_adjustment():
    # K = 2, kappa = 1. W_1 = (1, 2), W_2 = (5, 0.5), W_agg = (3, 1.25): X_agg = (1, 0), clients' mean (.5, .5).
    method = FedRTS(aggregate_vote=0.25, swap_fraction=0.8)
    host = server(weights_of(3.0, 1.25), 1)
    updates = [Update(0, 7, weights_of(1.0, 2.0), {}), Update(1, 7, weights_of(5.0, 0.5), {})]
    assert method.adjust(host, updates) is None
    assert belief(host) == ([7.25, 4.75, 1, 1, 1, 1], [4.75, 7.25, 1, 1, 1, 1])


def test_clients_vote_by_their_samples():
    method = FedRTS(aggregate_vote=0.0, swap_fraction=0.8)
    host = server(weights_of(3.0, 1.25), 1)
    method.adjust(host, [Update(0, 1, weights_of(1.0, 2.0), {}), Update(1, 3, weights_of(5.0, 0.5), {})])
    assert belief(host)[0][:2] == [8.5, 3.5]


def test_the_posterior_of_pruned_weights_in_an_adjusting_round():
    # gamma = 1/2: no vote .25, half the votes .5, all votes .75; kept ones by the core as in every round.
    method = FedRTS(swap_fraction=0.8, adjust_every=2)
    host = server(weights_of(3.0, 1.25), 2)
    updates = [
        Update(0, 5, weights_of(3.0, 1.0), votes(3, 4)),
        Update(1, 5, weights_of(3.0, 1.0), votes(4)),
    ]
    topology = method.adjust(host, updates)
    alpha, beta = belief(host)
    assert alpha == [11, 1, 3.5, 6, 8.5, 3.5]
    assert beta == [1, 11, 8.5, 6, 3.5, 8.5]
    assert topology["w"].nnz == 2


def test_a_layer_without_anything_to_swap_keeps_its_mask():
    method = FedRTS(swap_fraction=0.4, adjust_every=2)  # 0.4 of two is none
    host = server(weights_of(3.0, 1.25), 2)
    update = Update(0, 5, weights_of(3.0, 1.0), {"votes": {}})
    assert method.adjust(host, [update]) == host.weights.topology
    assert belief(host) == ([11, 11, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1])


def test_sampling_from_certainty_returns_it():
    method = FedRTS(swap_fraction=0.8, adjust_every=2)
    host = server(weights_of(3.0, 1.25), 2)
    sure = torch.tensor([False, False, False, True, False, True])
    many, one = torch.tensor(1e6), torch.tensor(1.0)
    host.memory["posterior"]["w"] = {"alpha": torch.where(sure, many, one), "beta": torch.where(sure, one, many)}
    topology = method.adjust(host, [Update(0, 5, weights_of(3.0, 1.0), votes(2))])
    assert topology["w"].flat.tolist() == [3, 5]


def test_upper_bounds_choose_what_is_known_least():
    method = FedRTS(swap_fraction=0.8, adjust_every=2, score="cucb")
    host = server(weights_of(3.0, 1.25), 2)
    # Position 2 has 100 middling outcomes, 3 to 5 none but this round's: one each.
    memory = host.memory["posterior"]["w"]
    memory["alpha"][2] = memory["beta"][2] = 501.0
    topology = method.adjust(host, [Update(0, 5, weights_of(3.0, 1.0), votes(4))])
    # Means and counts after it: 0: 1 of 1, 1: 0 of 1, 2: .5 of 101, 3: .25 of 1, 4: .75 of 1, 5: .25 of 1.
    assert topology["w"].flat.tolist() == [0, 4]


def test_averaging_outcomes_in_place_of_counting():
    method = FedRTS(swap_fraction=0.8, momentum=0.9, aggregate_vote=1.0, score="mean", adjust_every=2)
    host = server(weights_of(3.0, 1.25), 1, prior=0.5)
    method.adjust(host, [Update(0, 5, weights_of(1.0, 2.0), {})])
    assert belief(host)[0] == pytest.approx([0.55, 0.45, 0.5, 0.5, 0.5, 0.5])
    host.round = 2
    topology = method.adjust(host, [Update(0, 5, weights_of(1.0, 2.0), votes(3))])
    # 0.595 and 0.405; pruned ones stay at 0.5, and the first of equals is taken.
    assert topology["w"].flat.tolist() == [0, 2]


def test_the_aggregates_core_is_kept_when_only_it_counts():
    method = FedRTS(
        aggregate_vote=1.0, evidence=1e6, score="mean", every_round=False, swap_fraction=0.7, adjust_every=2
    )
    values = (0.3, -4.0, 2.0, 0.1)
    host = server(weights_of(*values), 2)
    topology = method.adjust(host, [Update(0, 5, weights_of(9.0, 0.0, 0.0, 9.0), votes(5))])
    # kappa = 4 - floor(0.7 * 4) = 2: positions 1 and 2; the other kept ones have a mean of 0, pruned ones of 1/2.
    assert topology["w"].flat.tolist() == [1, 2, 4, 5]
    host.round = 3
    assert method.adjust(host, []) is None, "rounds without adjustment are not observed"


def test_two_steps_exchange_exactly_as_many_and_the_reset_forgets():
    # One of two goes: position 1 by the posterior. Votes: 3 none, 4 all, so Beta(10 + 1/4, 1/4) at 4.
    method = FedRTS(swap_fraction=0.8, adjust_every=2, two_step=True, reset=True, score="mean")
    host = server(weights_of(3.0, 1.25), 2, prior=0.5)
    topology = method.adjust(host, [Update(0, 5, weights_of(3.0, 1.0), votes(4))])
    assert topology["w"].flat.tolist() == [0, 4]
    assert belief(host) == ([0.5] * SIZE, [0.5] * SIZE)  # a = 1 of K = 2


def test_two_steps_may_take_back_what_was_dropped():
    method = FedRTS(swap_fraction=0.8, adjust_every=2, two_step=True, score="mean")
    host = server(weights_of(3.0, 1.25), 2)
    topology = method.adjust(host, [Update(0, 5, weights_of(3.0, 1.0), votes())])
    assert topology["w"].flat.tolist() == [0, 1]  # nobody votes, so all are equal and the lowest position wins


# ---- clients
def test_clients_send_positions_of_their_largest_gradients_alone():
    method = small_method("fedrts")
    weights = start()
    counts = method.swap_counts(weights.topology, ROUND)
    client = hosted(method, weights, extras={"counts": counts})
    sent = method.train(client)["votes"]
    reference = probe_gradients(read_weights(client.model))
    assert set(sent) == {name for name, count in counts.items() if count}
    for name, positions in sent.items():
        assert type(positions) is IndexSet
        assert set(positions.indices.tolist()) == first(reference[name].abs(), counts[name], ~kept(weights, name))
    assert method.train(hosted(method, weights)) == {}


def test_answers_are_judged():
    method = small_method("fedrts")
    sent = Download(weights_of(1.0, 2.0), {"counts": {"w": 2}})
    method.check(sent, Update(0, 1, None, votes(2, 5)))
    for wrong, reason in ((votes(1, 5), "position 1 of 'w', which is kept"), (votes(2, 3, 4), "expected at most 2")):
        with pytest.raises(ClientError, match=reason):
            method.check(sent, Update(0, 1, None, wrong))


# ---- a whole run
def replayed(method, engine, rounds):
    """Alpha and beta after each round, and the masks they lead to by their means, in float64 from what was uploaded."""
    known, posterior, history = {}, {}, []
    for number, exchange in enumerate(engine.exchanges[:rounds]):
        uploads = []
        for request, reply in exchange:
            down = wire.decode(request.blob, topologies=known)
            known[down.weights.topology.digest] = down.weights.topology
            uploads.append(wire.decode(reply.blob, topologies=known))
        sizes = [small_data().sizes[k] for k in seeds.cohort(7, number, clients=6, size=4)]
        shares = [n / sum(sizes) for n in sizes]
        share, masks = cosine_share(method.swap_fraction, number, method.adjust_until), {}
        for name, pattern in uploads[0].weights.topology.items():
            alpha, beta = posterior.setdefault(name, [torch.ones(pattern.size).double() for _ in range(2)])
            active = pattern.mask().flatten()
            kappa = pattern.nnz - int(share * pattern.nnz)
            values = [u.weights.weight(name).flatten().double() for u in uploads]
            mean = sum(v * p for v, p in zip(values, shares, strict=True)).float()
            x = torch.full((pattern.size,), torch.nan).double()
            clients = torch.zeros(pattern.size).double()
            for v, p in zip(values, shares, strict=True):
                clients[list(first(v.abs(), kappa, active))] += p
            mine = torch.zeros(pattern.size).double()
            mine[list(first(mean.abs(), kappa, active))] = 1
            x[active] = (0.5 * mine + 0.5 * clients)[active]
            swaps = min(pattern.nnz - kappa, int((~active).sum()))
            if method.adjusts(number) and swaps:
                voted = torch.zeros(pattern.size).double()
                for u, p in zip(uploads, shares, strict=True):
                    voted[u.extras["votes"][name].indices] += p
                x[~active] = (0.25 + 0.5 * voted)[~active]
            seen = ~x.isnan()
            alpha[seen] += 10 * x[seen]
            beta[seen] += 10 * (1 - x[seen])
            masks[name] = (alpha / (alpha + beta), pattern.nnz, swaps)
        history.append(({n: (a.clone(), b.clone()) for n, (a, b) in posterior.items()}, masks))
    return history


def test_a_run_follows_its_posterior():
    method = small_method("fedrts", score="mean")
    plan = small_plan(method, rounds=5)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    topologies = {}
    for number, exchange in enumerate(engine.exchanges):
        down = wire.decode(exchange[0][0].blob, topologies={t.digest: t for t in topologies.values()})
        topologies[number] = down.weights.topology
    topologies[5] = outcome.weights.topology
    for number, (_, masks) in enumerate(replayed(method, engine, 5)):
        for name, (mean, count, swaps) in masks.items():
            before, after = topologies[number][name], topologies[number + 1][name]
            if not (method.adjusts(number) and swaps):
                assert after == before
                continue
            # Equal means are equal to the last bit on either side only up to rounding.
            lowest = mean[after.mask().flatten()].min()
            assert mean[~after.mask().flatten()].max() <= lowest + 1e-6
            assert after.nnz == count
            assert after != before


def test_the_memory_holds_the_replayed_posterior_and_survives_a_checkpoint():
    method = small_method("fedrts")
    plan = small_plan(method, rounds=4)
    spy = SpyEngine(plan)
    host = FederatedServer(plan, spy, Ledger(None))
    for number in range(4):
        host.begin(number)
        if number == 0:
            host.weights = method.start(host)
        updates = host.ask(method.train, lambda k: method.download(host, k), weights_back=True, check=method.check)
        host.weights = method.aggregate(host, updates)
        topology = method.adjust(host, updates)
        host.weights = host.weights if topology is None else host.weights.moved_to(topology)
    expected, _ = replayed(method, spy, 4)[-1]
    for name, (alpha, beta) in expected.items():
        found = host.memory["posterior"][name]
        torch.testing.assert_close(found["alpha"].double(), alpha, rtol=1e-5, atol=0)
        torch.testing.assert_close(found["beta"].double(), beta, rtol=1e-5, atol=0)
        assert found["alpha"].dtype == torch.float32
    other = FederatedServer(plan, InlineEngine(plan), Ledger(None))
    other.restore(wire.decode(wire.encode(host.state(4))))
    for name, found in host.memory["posterior"].items():
        for part in ("alpha", "beta"):
            assert torch.equal(other.memory["posterior"][name][part], found[part])


ABLATIONS = {
    "clients only": {"aggregate_vote": 0.0},
    "aggregate only": {"aggregate_vote": 1.0},
    "without Thompson sampling": {"score": "mean", "momentum": 0.9, "aggregate_vote": 1.0},
    "FedCUCB": {"score": "cucb"},
    "FedAdaPruning": {"two_step": True, "reset": True},
    "its means": {"two_step": True, "reset": True, "score": "mean"},
    "adjusting rounds": {"every_round": False},
}


def test_every_ablation_keeps_counts_moves_masks_and_differs():
    usual = go(small_plan(small_method("fedrts"), rounds=4))
    counts = small_method("fedrts").initial_topology(SmallNet(), "random", torch.Generator()).counts
    ends = [usual]
    for settings in ABLATIONS.values():
        outcome = go(small_plan(small_method("fedrts", **settings), rounds=4))
        assert outcome.weights.topology.counts == counts
        assert [r["masks_changed"] > 0 for r in outcome.metrics] == [False, False, True, False]
        assert not any(same_bits(outcome, other) for other in ends)
        ends.append(outcome)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate_vote": 1.5}, "fedrts: aggregate_vote = 1.5; expected a share in [0, 1]"),
        ({"evidence": 0.0}, "fedrts: evidence = 0.0; expected a number above 0"),
        ({"score": "best"}, "fedrts: score = 'best'; expected one of thompson, mean, cucb"),
        ({"momentum": 1.0}, "fedrts: momentum = 1.0; expected a share in [0, 1)"),
        (
            {"score": "cucb", "reset": True},
            "fedrts: score = 'cucb'; "
            "expected another one with momentum or reset: cucb counts outcomes from Beta(1, 1) on",
        ),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError) as raised:
        FedRTS(**settings)
    assert str(raised.value) == message
