"""PruneFL: its rule against numbers worked out by hand, its sums against a dense float64 network, its two stages."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedsparse import pruning, wire
from fedsparse.errors import ClientError, ConfigError, FedsparseError
from fedsparse.methods.prunefl import PruneFL, _check_first, core
from fedsparse.methods.roles import CostRow, Download, Update
from fedsparse.methods.squares import Squares
from fedsparse.nn import read_weights
from fedsparse.pattern import Pattern, Topology, Weights, parse
from tests.federated.small_run import SmallNet, SpyEngine, go, small_method, small_plan
from tests.methods.local import ROUND, start, step_gradients, still

SQUARES = torch.tensor([4.0, 1.0, 0.5, 0.2, 6.0, 3.0, 0.1, 2.0]).view(2, 4)


def example(round=0):
    topology = Topology.from_masks({"w": (torch.arange(8) < 4).view(2, 4)})
    memory = {"uses": {"w": 1}, "limit": 8}
    weights = Weights(topology, {"w": torch.tensor([0.9, -0.5, 0.3, 0.1])}, {})
    return SimpleNamespace(round=round, weights=weights, memory=memory)


def method(**settings):
    usual = {"swap_fraction": 0.5, "fixed_seconds": 2.0, "weight_seconds": 1.0, "adjust_every": 2}
    return PruneFL(**{**usual, **settings})


def update(client, squares, rest=0.0):
    return Update(client, 5, None, {"squares": {"w": squares}, "rest": rest})


# ---- the rule
def test_the_core_is_what_the_largest_decrease_leaves():
    pattern, values = example().weights.topology["w"], torch.tensor([0.9, -0.5, 0.3, 0.1])
    assert core(pattern, values, 0.5).nonzero().tolist() == [[0, 0], [0, 1]]  # not below 0.5, the value at place 2
    assert core(pattern, values, 0.0).sum() == 4
    assert core(pattern, values, 0.74).sum() == 2
    assert core(pattern, values, 1.0).nonzero().tolist() == [[0, 0]], "one stays"
    assert core(pattern, torch.ones(4), 0.5).sum() == 4, "equals of the threshold stay"


def test_the_core_is_of_whole_units():
    mask = torch.tensor([[True, True, True, False]] * 2)
    pattern = Pattern.from_mask(mask, parse("vector:2"))
    values = torch.tensor([0.1, 0.5, 0.4, 0.9, 0.5, 0.4])  # root mean squares of the columns: about 0.64, 0.5, 0.4
    assert core(pattern, values, 0.34).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert core(pattern, values, 1.0).nonzero().tolist() == [[0, 0], [1, 0]], "one stays"


def test_the_worked_example_of_one_adjustment():
    # Two of four may go, so the cores are 0 and 1 with 5 / 4; accepted: 6 (11 / 5), 3 (14 / 6); 2 is below 14 / 6.
    host = example(2)
    usual = method(swap_fraction=0.6)
    assert usual.adjust(host, [update(0, SQUARES)])["w"].flat.tolist() == [0, 1, 4, 5]
    # The clients' squares add up, and so do those of weights outside the pruned layers: 25 / 4 > 6.
    halves = [update(0, SQUARES / 2, 10.0), update(1, SQUARES / 2, 10.0)]
    assert usual.adjust(host, halves)["w"].flat.tolist() == [0, 1]
    assert usual.adjust(example(3), halves) is None


def test_the_share_that_may_go_falls_by_half_lives():
    # Of four kept, floor(0.5 * 4) = 2 may go in round 0, floor(0.25 * 4) = 1 after one half-life.
    weights, squares = example().weights, Squares({"w": torch.zeros(2, 4)}, 0.0)
    found = [
        method(half_life=6.0).adjusted(weights, squares, uses={"w": 1}, limit=8, round=round)["w"].flat.tolist()
        for round in (0, 6, 12)
    ]
    assert found == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_the_time_of_a_weight_is_sending_and_using_it():
    topology = Topology.from_masks({"far": torch.tensor([[True, False]]), "near": torch.tensor([[True, False]])})
    weights = Weights(topology, {name: torch.ones(1) for name in topology}, {})
    squares = Squares({name: torch.tensor([[1.0, 3.0]]) for name in topology}, 0.0)
    uses = {"far": 1, "near": 100}
    free = method(use_seconds=0.0).adjusted(weights, squares, uses=uses, limit=4, round=0)
    timed = method(use_seconds=1.0).adjusted(weights, squares, uses=uses, limit=4, round=0)
    # Free: 2 / 4, then both with 3 / 1. Timed: 2 / (2 + 2 + 101); 3 / 2 goes, then 3 / 101 < 5 / 107.
    assert free.counts == {"far": 2, "near": 2}
    assert timed.counts == {"far": 2, "near": 1}


def test_the_next_adjustment():
    usual = PruneFL(adjust_every=10, adjust_until=25)
    assert [usual.next_adjustment(round) for round in (0, 1, 10, 11, 20, 21, 30)] == [10, 10, 10, 20, 20, None, None]


# ---- clients
def test_a_client_squares_the_sum_of_a_rounds_gradients_and_adds_rounds_up():
    usual, weights, memory = small_method("prunefl", adjust_every=2), start(), {}
    assert usual.train(still(usual, weights, round=1, memory=memory)) == {}
    answer = usual.train(still(usual, weights, round=2, memory=memory, extras={"adjusting": True}))
    wanted, rest = {}, 0.0
    for round in (1, 2):
        steps = step_gradients(weights, round=round)
        for name in steps[0]:
            square = sum(step[name] for step in steps).square() * 40
            if name in weights.topology:
                wanted[name] = wanted.get(name, 0) + square
            else:
                rest += float(square.sum())
    assert set(answer["squares"]) == set(weights.topology)
    for name, square in answer["squares"].items():
        torch.testing.assert_close(square.double(), wanted[name], rtol=1e-3, atol=1e-6)
    assert answer["rest"] == pytest.approx(rest, rel=1e-3)
    assert memory == {}, "what has been sent is forgotten"


def test_sums_from_before_an_adjustment_are_dropped():
    usual, weights = small_method("prunefl", adjust_every=2), start()
    memory, fresh = {}, {}
    usual.train(still(usual, weights, round=1, memory=memory))  # and then left out of round 2
    usual.train(still(usual, weights, round=3, memory=memory))
    usual.train(still(usual, weights, round=3, memory=fresh))
    assert memory["squares"]["due"] == fresh["squares"]["due"] == 4
    for name, square in fresh["squares"]["weights"].items():
        assert torch.equal(memory["squares"]["weights"][name], square)
    assert usual.train(still(usual, weights, round=7, memory=memory)) == {}
    assert memory == {}, "no adjustment comes after the last"


def test_answers_are_judged():
    usual, host = method(), example(2)
    sent = usual.download(host, 0)
    usual.check(sent, update(0, SQUARES))
    for extras, reason in (
        ({"squares": {"w": SQUARES}}, "the upload's 'rest' is missing; expected float"),
        ({"squares": {"w": SQUARES}, "rest": -1.0}, "the upload's 'rest' is -1.0, a sum of squares is not below 0"),
        ({"squares": {"v": SQUARES}, "rest": 0.0}, "of the upload's 'squares', 'v' was not asked for"),
    ):
        with pytest.raises(ClientError) as raised:
            usual.check(sent, Update(0, 5, None, extras))
        assert str(raised.value) == reason
    usual.check(usual.download(example(1), 0), Update(0, 5, None, {}))


# ---- the first stage
def test_one_client_prunes_the_dense_network_before_the_first_round():
    usual = small_method("prunefl")
    plan = small_plan(usual, rounds=1)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    assert [len(exchange) for exchange in engine.exchanges] == [1, 4]
    request, reply = engine.exchanges[0][0]
    down, up = wire.decode(request.blob), wire.decode(reply.blob)
    assert all(pattern.nnz == pattern.size for pattern in down.weights.topology.values())
    first = up.extras["weights"]
    # 8x8 pictures through strides of 1, 2 and 2.
    assert up.extras["uses"] == {"0.weight": 64, "3.weight": 16, "6.weight": 4}
    limit = int(0.2 * 9170) - (9170 - 8712)
    assert down.extras == {"limit": limit}
    # Six adjustments that drop at most 40 % each come to 5 % of the weights: the limit is reached.
    assert first.topology.nnz == outcome.metrics[0]["nnz"] == limit
    assert outcome.metrics[0]["density"] <= 0.2
    second = wire.decode(engine.exchanges[1][0][0].blob, topologies={first.topology.digest: first.topology})
    for name in first.topology:
        kept = second.weights.topology[name].mask()
        assert torch.equal(second.weights.weight(name)[kept], first.weight(name)[kept])


def test_without_adjustments_the_largest_initial_weights_within_the_density_stay():
    usual = small_method("prunefl", initial_adjustments=0)
    outcome = go(small_plan(usual, rounds=1))
    weights = {n: p.detach() for n, p in SmallNet().named_parameters() if p.ndim == 4}
    limit = int(0.2 * 9170) - (9170 - 8712)
    wanted = pruning.globally(pruning.magnitude(weights), limit)
    assert all(torch.equal(outcome.weights.topology[name].mask(), mask) for name, mask in wanted.items())


def test_nothing_is_pruned_before_the_client_has_learnt():
    class Deaf(nn.Sequential):
        """Answers the same whatever it sees."""

        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    usual = small_method("prunefl", density=1.0)
    still_rate = replace(small_plan(usual).client, lr=0.0)
    plan = small_plan(usual, rounds=1, build_model=Deaf, client=still_rate)
    engine = SpyEngine(plan)
    go(plan, engine)
    assert wire.decode(engine.exchanges[0][0][1].blob).extras["weights"].topology.counts == {"1.weight": 768}


def test_a_client_that_cannot_leaves_the_first_stage_to_the_next(tmp_path):
    plan = small_plan(small_method("prunefl"), rounds=1, sizes=(1, 20, 30), per_round=3)
    outcome = go(plan, folder=tmp_path)
    assert outcome.metrics[0]["clients"] == 2
    lines = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert [(line["client"], line["exchange"], line["status"]) for line in lines[:3]] == [
        (0, "ask", "failed"),
        (1, "ask", "ok"),
        (0, "train", "failed"),
    ]


def test_without_any_client_the_run_ends():
    plan = small_plan(small_method("prunefl"), rounds=1, sizes=(1, 1), per_round=2)
    with pytest.raises(ClientError, match=r"^round 0: none of 2 clients .* for 'prune_alone'; clients\.jsonl says why"):
        go(plan)


def test_answers_of_the_first_stage_are_judged():
    full = start(1.0)
    sent, good = Download(full, {"limit": 9}), {"weights": start(0.2), "uses": dict.fromkeys(full.topology, 4)}
    _check_first(sent, Update(0, 5, None, good))
    empty = Pattern.from_flat((8, 1, 3, 3), torch.empty(0, dtype=torch.int64))
    hollow = start(0.2).moved_to(start(0.2).topology.with_patterns({"0.weight": empty}))
    other = Weights(Topology(), {}, dict(read_weights(SmallNet()).dense))
    for change, reason in (
        ({"weights": 3}, "the upload's 'weights' is of type int; expected Weights"),
        ({"weights": other}, "of the upload's pruned weights, '0.weight' is missing"),
        ({"weights": hollow}, "the upload keeps nothing of '0.weight', or says that it is used nowhere"),
        ({"uses": {**good["uses"], "3.weight": 0}}, "the upload keeps nothing of '3.weight', or says"),
        ({"uses": {}}, "of the upload's 'uses', '0.weight' is missing"),
    ):
        with pytest.raises(FedsparseError) as raised:
            _check_first(sent, Update(0, 5, None, {**good, **change}))
        assert str(raised.value).startswith(reason)


def test_small_fixed_times_make_small_networks():
    sizes = []
    for fixed in (1e-4, 1e-2, 1.0):
        usual = small_method("prunefl", density=1.0, fixed_seconds=fixed)
        sizes.append(go(small_plan(usual, rounds=3)).weights.topology.nnz)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_costs():
    usual, topology = method(adjust_until=5), example().weights.topology
    # Eight sums and one dense gradient of eight, 4 bytes each.
    assert usual.costs(topology, 1) == CostRow(probes=None, buffer_bytes=64)
    assert usual.costs(topology, 2) == CostRow(probes=None, numbers_up=8, buffer_bytes=64)
    assert usual.costs(topology, 5) == CostRow()


def test_the_adjusting_round_downloads_say_so():
    usual = small_method("prunefl")
    assert [bool(usual.download(example(round), 0).extras) for round in (0, 1, ROUND, 3)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half_life": 0.0}, "prunefl: half_life = 0.0; expected a number of rounds above 0"),
        ({"fixed_seconds": -1.0}, "prunefl: fixed_seconds = -1.0; expected seconds of at least 0"),
        ({"weight_seconds": 0.0}, "prunefl: weight_seconds = 0.0; expected seconds above 0"),
        ({"use_seconds": -1.0}, "prunefl: use_seconds = -1.0; expected seconds of at least 0"),
        ({"initial_epochs": 0}, "prunefl: initial_epochs = 0; expected at least 1"),
        ({"initial_adjustments": -1}, "prunefl: initial_adjustments = -1; expected at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError) as raised:
        PruneFL(**settings)
    assert str(raised.value) == message
