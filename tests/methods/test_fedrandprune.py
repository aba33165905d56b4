"""FedRandPrune: a mask for every client and round, means over those who trained a weight."""

import itertools

import pytest
import torch

from fedsparse import pruning
from fedsparse.methods.fedrandprune import FedRandPrune
from fedsparse.methods.roles import Update
from fedsparse.pattern import Pattern, Topology, Weights
from tests.federated.small_run import SmallNet, SpyEngine, go, small_plan
from tests.methods.test_conformance import train_exchanges

SHAPES = {"0.weight": (8, 1, 3, 3), "3.weight": (24, 8, 3, 3), "6.weight": (32, 24, 3, 3)}
OTHERS = 9170 - 72 - 1728 - 6912


class Holding:
    """The part of a server that `aggregate` looks at."""

    def __init__(self, weights):
        self.weights = weights


def update(client, samples, kept, values):
    topology = Topology({"w": Pattern.from_flat((1, 4), torch.tensor(kept))})
    return Update(client, samples, Weights(topology, {"w": torch.tensor(values)}, {"b": torch.tensor([values[0]])}), {})


def test_positions_that_nobody_trained_keep_their_value():
    # n = (1, 3): position 0 by both (2 + 3 * 6) / 4 = 5, position 1 by the second alone, 2 by the first, 3 by nobody
    old = Weights(Topology(), {}, {"w": torch.tensor([[10.0, 20.0, 30.0, 40.0]]), "b": torch.tensor([7.0])})
    updates = [update(0, 1, [0, 2], [2.0, -1.0]), update(1, 3, [0, 1], [6.0, 8.0])]
    new = FedRandPrune(density=0.5).aggregate(Holding(old), updates)
    assert new.dense["w"].tolist() == [[5.0, 8.0, -1.0, 40.0]]
    assert new.dense["b"].tolist() == [5.0]
    assert new.topology == Topology()


@pytest.fixture(scope="module")
def run():
    torch.set_num_threads(1)
    plan = small_plan(FedRandPrune(density=0.2), rounds=3)
    engine = SpyEngine(plan)
    return go(plan, engine), train_exchanges(engine)


def test_every_client_of_every_round_has_its_own_mask(run):
    _, exchanges = run
    found = [download.weights.topology for downloads, _ in exchanges for download in downloads]
    assert len(found) == 12
    assert all(one != other for one, other in itertools.combinations(found, 2))
    counts = pruning.allocate(SHAPES, 0.2, distribution="erk", others=OTHERS)
    assert all(topology.counts == counts for topology in found)
    for name in ("3.weight", "6.weight"):
        often = torch.stack([topology[name].mask() for topology in found]).sum(0)
        assert int((often == 0).sum()) > 0  # 12 masks of such a density leave some positions out
        assert int((often >= 9).sum()) < 0.02 * often.numel()


def test_clients_start_from_the_global_weights_under_their_mask(run):
    outcome, ((first, uploads), (second, _), _) = run
    for name in SHAPES:
        initial = SmallNet().get_parameter(name).detach()
        covered = torch.zeros(initial.shape, dtype=torch.bool)
        for sent, back in zip(first, uploads, strict=True):
            mask = sent.weights.topology[name].mask()
            assert back.weights.topology[name].mask().equal(mask)
            assert torch.equal(sent.weights.weight(name), initial * mask)
            covered |= mask
        for sent in second:
            mask, got = sent.weights.topology[name].mask(), sent.weights.weight(name)
            assert torch.equal(got[mask & ~covered], initial[mask & ~covered])
            assert (got[mask & covered] != initial[mask & covered]).float().mean() > 0.9
    assert outcome.weights.topology == Topology()


def test_the_global_model_is_dense_and_clients_are_not(run):
    outcome, _ = run
    record = outcome.metrics[-1]
    assert (record["density"], record["nnz"], record["masks_changed"]) == (1.0, 8712, 0)
    assert record["bytes_up"] < 0.35 * record["bytes_up_dense"]
    assert record["flops_paper_modelled"] < 0.25 * 3 * 2 * (72 * 64 + 1728 * 16 + 6912 * 4 + 320) * 2 * 300
    dense = go(small_plan(FedRandPrune(density=1.0), rounds=1)).metrics[0]
    assert record["memory_weights_modelled"] < 0.3 * dense["memory_weights_modelled"]
