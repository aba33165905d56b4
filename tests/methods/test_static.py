"""Static pruning: which weights are kept, and that it stays that way."""

import pytest
import torch

from fedsparse import pruning
from fedsparse.errors import ConfigError
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.methods.static import Static
from tests.federated.small_run import SmallNet, go, small_plan

SHAPES = {"0.weight": (8, 1, 3, 3), "3.weight": (24, 8, 3, 3), "6.weight": (32, 24, 3, 3)}
OTHERS = 9170 - 72 - 1728 - 6912


def started(method, *, seed=7):
    plan = small_plan(method, seed=seed)
    server = FederatedServer(plan, InlineEngine(plan), Ledger(None))
    return method.start(server)


def test_magnitude_keeps_each_layers_largest_initial_weights():
    weights = started(Static(density=0.2))
    counts = pruning.allocate(SHAPES, 0.2, distribution="erk", others=OTHERS)
    model = SmallNet()
    for name, shape in SHAPES.items():
        initial = model.get_parameter(name).detach()
        smallest_kept = initial.abs().flatten().sort(descending=True).values[counts[name] - 1]
        assert weights.topology[name].shape == shape
        assert torch.equal(weights.topology[name].mask(), initial.abs() >= smallest_kept)
        assert torch.equal(weights.weight(name), initial * (initial.abs() >= smallest_kept))
    assert weights.topology.nnz + OTHERS <= 0.2 * 9170 < weights.topology.nnz + OTHERS + 1


def test_norms_and_the_output_layer_stay_dense():
    weights = started(Static(density=0.2))
    assert set(weights.topology) == set(SHAPES)
    assert weights.dense["11.weight"].shape == (10, 32)
    everything = started(Static(density=0.2, exclude="none"))
    assert set(everything.topology) == {*SHAPES, "11.weight"}
    assert set(started(Static(density=0.2, exclude="ends")).topology) == {"3.weight", "6.weight"}


def test_uniform_and_global_distributions():
    uniform = started(Static(density=0.2, distribution="uniform")).topology
    shares = [pattern.nnz / pattern.size for pattern in uniform.values()]
    assert max(shares) - min(shares) < 0.02
    chosen = started(Static(density=0.2, distribution="global"))
    model = SmallNet()
    kept = torch.cat([model.get_parameter(n).detach()[p.mask()].abs() for n, p in chosen.topology.items()])
    pruned = torch.cat([model.get_parameter(n).detach()[~p.mask()].abs() for n, p in chosen.topology.items()])
    assert kept.min() >= pruned.max()


def test_random_masks_follow_the_seed_of_the_run():
    method = Static(density=0.2, score="random")
    first, again, other = started(method), started(method), started(method, seed=8)
    assert first.topology == again.topology
    assert first.topology != other.topology
    assert first.topology.counts == other.topology.counts == started(Static(density=0.2)).topology.counts


def test_the_mask_of_round_zero_is_the_mask_of_the_end():
    method = Static(density=0.2)
    outcome = go(small_plan(method, rounds=3))
    assert outcome.weights.topology == started(method).topology
    assert [record["masks_changed"] for record in outcome.metrics] == [0, 0, 0]


def test_the_score_is_checked():
    with pytest.raises(ConfigError, match=r"^static: score = 'snip'; expected one of magnitude, random$"):
        Static(score="snip")
