"""Weights under one topology and another."""

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, Topology, Weights

MASK = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)
BIAS = torch.tensor([0.5, -0.5])


@pytest.fixture
def weights():
    topology = Topology.from_masks({"a.weight": MASK})
    dense = {"a.bias": BIAS, "b.weight": torch.arange(6.0).view(3, 2) + 1}
    return Weights(topology, {"a.weight": torch.tensor([1.0, 2.0, 3.0])}, dense)


def test_looks(weights):
    assert weights.weight("a.weight").tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    assert weights.weight("b.weight") is weights.dense["b.weight"]
    assert weights.nbytes == 4 * (3 + 2 + 6)
    assert [name for name, _ in weights.items()] == ["a.weight", "a.bias", "b.weight"]


def test_moved_to_another_mask(weights):
    new = torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    moved = weights.moved_to(Topology.from_masks({"a.weight": new}))
    assert moved.values["a.weight"].tolist() == [0.0, 2.0, 0.0, 3.0]
    assert moved.dense.keys() == weights.dense.keys()
    assert weights.values["a.weight"].tolist() == [1.0, 2.0, 3.0]


def test_moved_to_the_same_topology_is_itself(weights):
    assert weights.moved_to(Topology.from_masks({"a.weight": MASK.clone()})) is weights


def test_sparse_becomes_dense_and_dense_sparse(weights):
    mask = torch.tensor([[1, 0], [0, 0], [0, 1]], dtype=torch.bool)
    moved = weights.moved_to(Topology.from_masks({"b.weight": mask}))
    assert moved.values.keys() == {"b.weight"}
    assert moved.values["b.weight"].tolist() == [1.0, 6.0]
    assert moved.dense.keys() == {"a.weight", "a.bias"}
    assert torch.equal(moved.dense["a.weight"], weights.weight("a.weight"))
    back = moved.moved_to(weights.topology)
    assert back.values["a.weight"].tolist() == [1.0, 2.0, 3.0]
    assert back.dense["b.weight"].tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 6.0]]
    assert weights.dense["b.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_moved_agrees_with_a_dense_model(generator):
    shape = (6, 4, 3, 3)
    old, new = (torch.rand(shape, generator=generator) < 0.3 for _ in range(2))
    pattern = Pattern.from_mask(old)
    values = torch.randn(pattern.nnz, generator=generator)
    before = Weights(Topology({"w": pattern}), {"w": values}, {})
    after = before.moved_to(Topology.from_masks({"w": new}))
    assert torch.equal(after.weight("w"), before.weight("w") * new)


def test_with_dense(weights):
    changed = weights.with_dense({"a.bias": torch.zeros(2)})
    assert changed.dense["a.bias"].tolist() == [0.0, 0.0]
    assert weights.dense["a.bias"] is BIAS
    assert changed.dense["b.weight"] is weights.dense["b.weight"]
    with pytest.raises(PatternError, match=r"no dense tensor named 'a\.weight'; there are a\.bias, b\.weight"):
        weights.with_dense({"a.weight": torch.zeros(2, 3)})


def test_errors(weights):
    topology = weights.topology
    with pytest.raises(PatternError, match=r"values are given for \[\], but the topology has \['a\.weight'\]"):
        Weights(topology, {}, {})
    with pytest.raises(PatternError, match=r"'a\.weight': expected values of shape \(3,\), got \(2,\)"):
        Weights(topology, {"a.weight": torch.zeros(2)}, {})
    with pytest.raises(PatternError, match="both as sparse values and as a dense tensor"):
        Weights(topology, weights.values, {"a.weight": torch.zeros(2, 3)})
    with pytest.raises(PatternError, match=r"no weight named 'c' to prune; there are a\.weight, a\.bias, b\.weight"):
        weights.moved_to(Topology.from_masks({"c": MASK}))
    with pytest.raises(PatternError, match=r"from a weight of shape \(2, 3\) to one of shape \(3, 2\)"):
        weights.moved_to(Topology.from_masks({"a.weight": MASK.T}))


def test_shapes_are_dense_whatever_is_pruned(weights):
    assert weights.shapes == {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (3, 2)}
    assert weights.moved_to(Topology()).shapes == weights.shapes


def test_states_of_one_model_agree_whatever_is_pruned(weights):
    weights.require_shapes(weights.moved_to(Topology()), here="mine", there="yours")


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ({"a.bias": BIAS}, "'b.weight' is in mine only"),
        ({"a.bias": BIAS, "b.weight": torch.ones(3, 2), "c": BIAS}, "'c' is in yours only"),
        (
            {"a.bias": BIAS, "b.weight": torch.ones(2, 3)},
            r"'b.weight' has shape \(3, 2\) in mine, but \(2, 3\)",
        ),
    ],
)
def test_states_of_different_models_do_not(weights, dense, message):
    other = Weights(weights.topology, weights.values, dense)
    with pytest.raises(PatternError, match=message):
        weights.require_shapes(other, here="mine", there="yours")
