"""Averages against numbers worked out by hand."""

from itertools import permutations

import pytest
import torch

from fedsparse.errors import MethodError
from fedsparse.methods.aggregation import mean
from fedsparse.methods.roles import Update
from fedsparse.pattern import Topology, Weights

MASK = torch.tensor([[True, False], [True, True]])
TOPOLOGY = Topology.from_masks({"fc.weight": MASK})


def update(client, samples, values, *, topology=TOPOLOGY, bias=(0.0,), batches=1):
    dense = {"fc.bias": torch.tensor(bias), "norm.num_batches_tracked": torch.tensor(batches)}
    return Update(client, samples, Weights(topology, {"fc.weight": torch.tensor(values)}, dense), {})


def test_two_clients_of_one_and_three_samples():
    got = mean([update(0, 1, [2.0, 0.0, -4.0], bias=(2.0,)), update(1, 3, [6.0, 4.0, 4.0], bias=(6.0,))])
    assert got.values["fc.weight"].tolist() == [5.0, 3.0, 2.0]
    assert got.dense["fc.bias"].tolist() == [5.0]
    assert got.weight("fc.weight").tolist() == [[5.0, 0.0], [3.0, 2.0]]
    assert got.topology == TOPOLOGY


def test_counters_take_their_largest_value_and_stay_integers():
    got = mean([update(0, 1, [0.0, 0.0, 0.0], batches=9), update(1, 99, [0.0, 0.0, 0.0], batches=2)])
    assert got.dense["norm.num_batches_tracked"].item() == 9
    assert got.dense["norm.num_batches_tracked"].dtype == torch.int64


def test_one_client_is_returned_to_the_bit(generator):
    values = torch.randn(3, generator=generator)
    got = mean([update(4, 17, values.tolist(), bias=(0.1,))])
    assert torch.equal(got.values["fc.weight"], values)
    assert got.dense["fc.bias"].tolist() == torch.tensor([0.1]).tolist()


def test_the_order_of_arrival_changes_no_bit(generator):
    updates = [update(k, 3 + k, torch.randn(3, generator=generator).tolist()) for k in range(4)]
    results = [mean(order).values["fc.weight"] for order in permutations(updates)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_mean_is_that_of_float64(generator):
    samples, values = (3, 7, 11), torch.randn(3, 3, generator=generator)
    got = mean([update(k, n, values[k].tolist()) for k, n in enumerate(samples)])
    wanted = (values.double() * torch.tensor(samples, dtype=torch.float64)[:, None]).sum(0) / sum(samples)
    assert got.values["fc.weight"].dtype == torch.float32
    assert torch.equal(got.values["fc.weight"], wanted.float())


def test_scalars_and_empty_updates():
    scalar = Weights(Topology(), {}, {"scale": torch.tensor(3.0)})
    other = Weights(Topology(), {}, {"scale": torch.tensor(7.0)})
    assert mean([Update(0, 1, scalar, {}), Update(1, 1, other, {})]).dense["scale"].item() == 5.0
    with pytest.raises(MethodError, match=r"^there is no update to average$"):
        mean([])


def test_inputs_are_left_as_they_are():
    first, second = update(0, 1, [1.0, 2.0, 3.0]), update(1, 1, [3.0, 4.0, 5.0])
    mean([first, second])
    assert first.weights.values["fc.weight"].tolist() == [1.0, 2.0, 3.0]
    assert second.weights.values["fc.weight"].tolist() == [3.0, 4.0, 5.0]


def test_topologies_must_agree():
    other = Topology.from_masks({"fc.weight": ~MASK | torch.tensor([[False, False], [True, True]])})
    with pytest.raises(MethodError, match=r"^mean\(\) averages weights of one topology, the updates have several$"):
        mean([update(0, 1, [1.0, 2.0, 3.0]), update(1, 1, [1.0, 2.0, 3.0], topology=other)])
