"""PruneFL at a fixed size: squares against a dense float64 network, swaps against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch

from fedsparse.errors import ClientError, ConfigError
from fedsparse.methods.prunefl_fixed import PruneFLFixed
from fedsparse.methods.roles import CostRow, Download, Update
from fedsparse.pattern import Topology, Weights
from tests.federated.small_run import go, small_method, small_plan
from tests.methods.local import ROUND, start, step_gradients, still

METHOD = PruneFLFixed(adjust_every=10, adjust_until=100, swap_fraction=0.5)


def server(round=50):
    topology = Topology.from_masks({"w": (torch.arange(8) < 4).view(2, 4)})
    return SimpleNamespace(round=round, weights=Weights(topology, {"w": torch.tensor([0.9, -0.1, 0.3, -0.5])}, {}))


def squares(*entries, shape=(2, 4)):
    return {"squares": {"w": torch.tensor(entries).view(shape)}}


def test_the_smallest_weight_gives_way_to_the_largest_mean_square():
    # With 1 and 3 samples: 5 gets (8 + 3 * 1) / 4 = 2.75, 6 gets 3 * 4 / 4 = 3; kept weights' squares decide nothing.
    updates = [
        Update(0, 1, None, squares(99.0, 99.0, 99.0, 99.0, 0.0, 8.0, 0.0, 1.0)),
        Update(1, 3, None, squares(99.0, 99.0, 99.0, 99.0, 0.0, 1.0, 4.0, 1.0)),
    ]
    assert METHOD.adjust(server(), updates)["w"].flat.tolist() == [0, 2, 3, 6]
    assert [METHOD.adjust(server(round), updates) for round in (0, 45, 100)] == [None] * 3
    assert METHOD.download(server(), 0).extras == {"counts": {"w": 1}}
    assert METHOD.download(server(51), 0).extras == {}


def test_clients_send_the_mean_over_steps_of_squared_dense_gradients():
    method, weights = small_method("prunefl_fixed"), start()
    counts = method.swap_counts(weights.topology, ROUND)
    found = method.train(still(method, weights, extras={"counts": counts}))["squares"]
    steps = step_gradients(weights)
    assert len(steps) == 3
    assert set(found) == {"3.weight", "6.weight"}  # the first layer is dense, so it swaps nothing
    for name, square in found.items():
        wanted = torch.stack([gradients[name].square() for gradients in steps]).mean(0)
        torch.testing.assert_close(square.double(), wanted, rtol=1e-4, atol=1e-8)
        assert square.dtype == torch.float32
    assert method.train(still(method, weights)) == {}


@pytest.mark.parametrize(
    ("extras", "reason"),
    [
        ({}, "the upload's 'squares' is missing; expected dict"),
        ({"squares": {}}, "of the upload's 'squares', 'w' is missing"),
        (
            squares(*[1.0] * 8, shape=(4, 2)),
            "the upload's squares of 'w' are torch.float32 (4, 2); expected torch.float32 (2, 4)",
        ),
        (
            squares(1.0, 1.0, 1.0, 1.0, 1.0, -2.0, 1.0, 1.0),
            "the upload's squares of 'w' go down to -2; none is below 0",
        ),
    ],
)
def test_answers_are_judged(extras, reason):
    sent = Download(server().weights, {"counts": {"w": 1}})
    with pytest.raises(ClientError) as raised:
        METHOD.check(sent, Update(0, 1, None, extras))
    assert str(raised.value) == reason
    METHOD.check(sent, Update(0, 1, None, squares(*[1.0] * 8)))
    METHOD.check(Download(sent.weights), Update(0, 1, None, {}))


def test_costs():
    topology = server().weights.topology
    assert METHOD.costs(topology, 50) == CostRow(probes=None, numbers_up=8, buffer_bytes=64)
    assert METHOD.costs(topology, 51) == CostRow()
    assert PruneFLFixed(adjust_every=10, swap_fraction=0.0).costs(topology, 50) == CostRow()


def test_the_first_mask_is_random_or_of_the_largest_weights():
    one, other = (go(small_plan(small_method("prunefl_fixed", score=s), rounds=1)) for s in ("magnitude", "random"))
    assert one.weights.topology != other.weights.topology
    assert one.weights.topology.counts == other.weights.topology.counts
    with pytest.raises(ConfigError, match=r"^prunefl_fixed: score = 'x'; expected one of magnitude, random$"):
        PruneFLFixed(score="x")
