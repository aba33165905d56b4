"""Averages against numbers worked out by hand."""

from itertools import permutations

import pytest
import torch

from fedsparse.errors import MethodError
from fedsparse.methods.aggregation import masked_mean, masked_mean_with_absent, mean
from fedsparse.methods.roles import Update
from fedsparse.pattern import Topology, Weights, parse

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


# ---- masked means
def masked(client, samples, mask, values, *, bias=0.0):
    topology = Topology.from_masks({"fc.weight": torch.tensor(mask, dtype=torch.bool).view(2, -1)})
    return update(client, samples, values, topology=topology, bias=(bias,))


def test_a_position_is_averaged_over_the_clients_that_keep_it():
    # n = (1, 3), W1 = (2, -), W2 = (6, 8): (5, 8), where a dense mean would say (5, 6)
    got = masked_mean([masked(0, 1, [1, 0], [2.0], bias=2.0), masked(1, 3, [1, 1], [6.0, 8.0], bias=6.0)])
    assert got.weight("fc.weight").flatten().tolist() == [5.0, 8.0]
    assert got.dense["fc.bias"].tolist() == [5.0]


def test_what_nobody_keeps_is_pruned():
    got = masked_mean([masked(0, 1, [1, 0, 0, 0], [2.0]), masked(1, 1, [0, 0, 1, 0], [3.0])])
    assert got.topology["fc.weight"].flat.tolist() == [0, 2]
    assert got.values["fc.weight"].tolist() == [2.0, 3.0]


def test_what_nobody_keeps_has_the_old_value_where_there_is_one():
    updates = [masked(0, 1, [1, 0, 0, 0], [2.0]), masked(1, 1, [1, 0, 1, 0], [4.0, 3.0])]
    dense = Weights(Topology(), {}, {"fc.weight": torch.tensor([[9.0, 8.0], [7.0, 6.0]]), "fc.bias": torch.zeros(1)})
    got = masked_mean(updates, old=dense)
    assert not got.topology
    assert got.dense["fc.weight"].tolist() == [[3.0, 8.0], [3.0, 6.0]]
    sparse = masked(2, 1, [0, 0, 1, 1], [7.0, 6.0]).weights
    got = masked_mean(updates, old=sparse)
    assert got.topology["fc.weight"].flat.tolist() == [0, 2, 3]
    assert got.values["fc.weight"].tolist() == [3.0, 3.0, 6.0]


def test_absent_clients_count_with_the_old_weights():
    # (1 * 4 + 3 * 0.8) / 4 = 1.6; where the client has pruned, the absent ones are alone, and the other way round.
    old = masked(9, 1, [1, 1, 0, 0], [0.8, 0.5], bias=1.0).weights
    got = masked_mean_with_absent([masked(0, 1, [1, 0, 1, 0], [4.0, 7.0], bias=5.0)], old, 3)
    assert got.topology["fc.weight"].flat.tolist() == [0, 1, 2]
    assert got.values["fc.weight"].tolist() == pytest.approx([1.6, 0.5, 7.0])
    assert got.dense["fc.bias"].tolist() == [2.0]
    nobody = masked_mean_with_absent([masked(0, 1, [1, 0, 1, 0], [4.0, 7.0])], old, 0)
    assert nobody.topology["fc.weight"].flat.tolist() == [0, 2]


def test_masked_means_are_those_of_float64_in_any_order(generator):
    shape, updates = (12, 30), []
    for client in range(5):
        topology = Topology.from_masks({"fc.weight": torch.rand(shape, generator=generator) < 0.4})
        updates.append(
            update(client, 3 + client, torch.randn(topology.nnz, generator=generator).tolist(), topology=topology)
        )
    masks = torch.stack([u.weights.topology["fc.weight"].mask() for u in updates])
    samples = torch.tensor([u.num_samples for u in updates], dtype=torch.float64).view(-1, 1, 1)
    dense = torch.stack([u.weights.weight("fc.weight") for u in updates]).double()
    wanted = (samples * dense).sum(0) / (samples * masks).sum(0)
    got = masked_mean(updates)
    assert torch.equal(got.topology["fc.weight"].mask(), masks.any(0))
    assert got.values["fc.weight"].dtype == torch.float32
    assert torch.allclose(got.values["fc.weight"].double(), wanted[masks.any(0)], rtol=2**-23, atol=0)
    assert torch.equal(masked_mean(updates[::-1]).values["fc.weight"], got.values["fc.weight"])


def test_of_one_topology_the_masked_mean_is_the_mean_to_the_bit(generator):
    updates = [update(k, 3 + k, torch.randn(3, generator=generator).tolist()) for k in range(4)]
    assert torch.equal(masked_mean(updates).values["fc.weight"], mean(updates).values["fc.weight"])


def test_a_single_client_keeps_its_weights_to_the_bit(generator):
    one = update(0, 17, torch.randn(3, generator=generator).tolist())
    values = one.weights.values["fc.weight"]
    assert torch.equal(masked_mean([one]).values["fc.weight"], values)
    empty = Weights(Topology(), {}, {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(1)})
    assert torch.equal(masked_mean([one], old=empty).dense["fc.weight"][MASK], values)


def test_masked_means_need_updates_that_prune_the_same_weights():
    with pytest.raises(MethodError, match=r"^there is no update to average$"):
        masked_mean([])
    other = Weights(Topology(), {}, {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(MethodError, match=r"^masked_mean\(\) averages clients that prune the same weights"):
        masked_mean([update(0, 1, [1.0, 2.0, 3.0]), Update(1, 1, other, {})])


# ---- larger units
def test_the_union_of_whole_units_is_of_whole_units():
    masks = [[[True, False], [True, False]], [[False, True], [False, True]]]
    topologies = [Topology.from_masks({"fc.weight": torch.tensor(mask)}, parse("vector:2")) for mask in masks]
    got = masked_mean([update(k, 1, [1.0, 2.0], topology=topology) for k, topology in enumerate(topologies)])
    assert got.weight("fc.weight").tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert str(got.topology["fc.weight"].granularity) == "vector:2"


def test_of_a_union_nm_keeps_the_largest_means():
    masks = [[[True, True, False, False]], [[True, False, True, False]], [[True, False, False, True]]]
    topologies = [Topology.from_masks({"fc.weight": torch.tensor(mask)}, parse("nm:2:4")) for mask in masks]
    values = [[3.0, -2.0], [-1.0, 1.0], [-1.0, 1.5]]
    got = masked_mean([update(k, 1, v, topology=t) for k, (v, t) in enumerate(zip(values, topologies, strict=True))])
    # Means 1 / 3, -2, 1 and 1.5: the largest in magnitude are the second and the fourth.
    assert got.weight("fc.weight").tolist() == [[0.0, -2.0, 0.0, 1.5]]
