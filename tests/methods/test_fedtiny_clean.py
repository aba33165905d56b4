"""FedTinyClean: what it asks, what it swaps, and the FedTiny it is the rest of."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from fedsparse.errors import ClientError, ConfigError
from fedsparse.methods import regrow
from fedsparse.methods.fedtiny import FedTiny
from fedsparse.methods.fedtiny_clean import FedTinyClean
from fedsparse.methods.roles import CostRow, Download, Update
from fedsparse.nn import read_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import SparseVector
from tests.federated.small_run import SETTINGS, exact, go, same_bits, small_method, small_plan
from tests.methods.local import ROUND, hosted, kept, probe_gradients, start


def server(round=50):
    topology = Topology.from_masks({n: (torch.arange(8) < 4).view(2, 4) for n in ("a.weight", "b.weight")})
    values = {name: torch.tensor([0.9, -0.1, 0.3, -0.5]) for name in topology}
    return SimpleNamespace(round=round, weights=Weights(topology, values, {}))


METHOD = FedTinyClean(adjust_every=10, adjust_until=100, swap_fraction=0.5)


def everything(*gradients):
    """An answer with gradients of positions 4 to 7 of layer b."""
    return {"top": {"b.weight": SparseVector(8, torch.arange(4, 8), torch.tensor(gradients))}}


def test_gradients_of_all_pruned_weights_are_asked_for():
    # Round 50 of 100: a quarter of four kept weights in each layer.
    assert METHOD.download(server(), 0).extras == {"counts": {"a.weight": 4, "b.weight": 4}}
    assert METHOD.download(server(51), 0).extras == {}
    still = FedTinyClean(adjust_every=10, adjust_until=100, swap_fraction=0.4)  # a fifth of four is none
    assert still.download(server(), 0).extras == {"counts": {"a.weight": 0, "b.weight": 0}}


def test_the_smallest_weight_gives_way_to_the_largest_mean_gradient():
    nothing = {"a.weight": SparseVector(8, torch.arange(4, 8), torch.zeros(4))}
    # Means, with 1 and 3 samples: 0.1, 0.25, -0.375, 0.2.
    updates = [
        Update(0, 1, None, {"top": nothing | everything(4.0, 1.0, 0.0, 0.8)["top"]}),
        Update(1, 3, None, {"top": nothing | everything(-1.2, 0.0, -0.5, 0.0)["top"]}),
    ]
    after = METHOD.adjust(server(), updates)
    assert after["b.weight"].flat.tolist() == [0, 2, 3, 6]
    assert after["a.weight"].flat.tolist() == [0, 2, 3, 4]  # equal gradients: the lowest position
    assert [METHOD.adjust(server(round), updates) for round in (0, 45, 100)] == [None] * 3


def test_a_client_answers_with_the_dense_gradient_of_its_trained_network():
    method = small_method("fedtiny_clean")
    weights = start()
    client = hosted(method, weights, extras={"counts": method.asked(weights.topology, ROUND)})
    top = method.train(client)["top"]
    reference = probe_gradients(read_weights(client.model))
    assert set(top) == {"3.weight", "6.weight"}  # the first layer is dense
    for name, vector in top.items():
        pruned = ~kept(weights, name)
        assert vector.indices.tolist() == pruned.nonzero().squeeze(1).tolist()
        torch.testing.assert_close(vector.values.double(), reference[name][pruned], rtol=1e-3, atol=1e-6)


def test_costs():
    topology = server().weights.topology
    assert METHOD.costs(topology, 50) == CostRow(probes=1, numbers_up=8, buffer_bytes=64)
    assert METHOD.costs(topology, 51) == CostRow()


def test_answers_are_judged():
    sent = Download(server().weights, {"counts": {"a.weight": 0, "b.weight": 4}})
    METHOD.check(sent, Update(0, 1, None, everything(1.0, 2.0, 3.0, 4.0)))
    with pytest.raises(ClientError, match=r"position 0 of 'b\.weight', which is kept"):
        METHOD.check(sent, Update(0, 1, None, {"top": {"b.weight": SparseVector(8, torch.tensor([0]), torch.ones(1))}}))


@dataclass(frozen=True, kw_only=True)
class Unlimited(FedTiny):
    """FedTiny that asks for every pruned weight's gradient."""

    name: ClassVar[str] = "unlimited"

    def download(self, server, client_id):
        sent = super().download(server, client_id)
        counts = regrow.asked(sent.extras) or {}
        topology = server.weights.topology
        return sent if not counts else regrow.ask(server, {n: topology[n].size - topology[n].nnz for n in counts})


def test_fedtiny_of_one_block_and_unlimited_uploads_is_the_same():
    shared = {key: SETTINGS[key] for key in ("density", "adjust_every", "adjust_until", "swap_fraction")}
    outcomes = [
        go(small_plan(method, rounds=5))
        for method in (FedTinyClean(**shared), Unlimited(**shared, candidates=1, blocks=1))
    ]
    assert same_bits(*outcomes)
    keys = ("loss", "masks_changed", "nnz")
    one, other = ([[r[key] for key in keys] for r in exact(outcome.metrics)] for outcome in outcomes)
    assert one == other
    limited = go(small_plan(FedTiny(**shared, candidates=1, blocks=1), rounds=5))
    assert not same_bits(outcomes[0], limited), "the mean of all gradients grows others than the mean of the largest"


def test_the_first_mask_can_be_random():
    one, other = (go(small_plan(small_method("fedtiny_clean", score=s), rounds=1)) for s in ("magnitude", "random"))
    assert one.weights.topology != other.weights.topology
    assert one.weights.topology.counts == other.weights.topology.counts
    with pytest.raises(ConfigError, match=r"^fedtiny_clean: score = 'x'; expected one of magnitude, random$"):
        FedTinyClean(score="x")
