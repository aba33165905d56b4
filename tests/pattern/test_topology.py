"""Topologies: identity, change and counting."""

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pattern import Pattern, Topology


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


A, B = mask([1, 0, 1], [0, 0, 1]), mask([1, 1], [0, 0])


def test_reads_like_a_mapping_in_order():
    topology = Topology.from_masks({"b.weight": B, "a.weight": A})
    assert list(topology) == ["b.weight", "a.weight"]
    assert topology["a.weight"] == Pattern.from_mask(A)
    assert topology.counts == {"b.weight": 2, "a.weight": 3}
    assert topology.nnz == 5
    assert all(torch.equal(m, {"a.weight": A, "b.weight": B}[n]) for n, m in topology.masks().items())
    assert len(Topology()) == Topology().nnz == 0


def test_digest():
    topology = Topology.from_masks({"a": A, "b": B})
    assert topology == Topology.from_masks({"a": A.clone(), "b": B.clone()})
    assert hash(topology) == hash(Topology.from_masks({"a": A, "b": B}))
    others = [{"a": A}, {"b": B, "a": A}, {"a": A, "c": B}, {"a": ~A, "b": B}, {}]
    digests = {topology.digest, *(Topology.from_masks(masks).digest for masks in others)}
    assert len(digests) == 1 + len(others)
    assert topology != {"a": A, "b": B}


def test_outside_changes_do_not_reach_in():
    patterns = {"a": Pattern.from_mask(A)}
    topology = Topology(patterns)
    patterns["b"] = Pattern.from_mask(B)
    assert list(topology) == ["a"]


def test_with_patterns():
    topology = Topology.from_masks({"a": A, "b": B})
    changed = topology.with_patterns({"b": Pattern.from_mask(~B)})
    assert list(changed) == ["a", "b"]
    assert changed["b"] == Pattern.from_mask(~B)
    assert topology["b"] == Pattern.from_mask(B)
    with pytest.raises(PatternError, match="no weight named 'c' in this topology; it has a, b"):
        topology.with_patterns({"c": Pattern.from_mask(B)})


def test_changed_positions_by_hand():
    topology = Topology.from_masks({"a": A, "b": B})
    assert topology.changed_positions(topology) == 0
    other = Topology.from_masks({"a": mask([1, 1, 0], [0, 0, 1]), "b": B})
    assert topology.changed_positions(other) == other.changed_positions(topology) == 2
    # b is dense on one side: its two pruned positions differ.
    alone = Topology.from_masks({"a": A})
    assert topology.changed_positions(alone) == alone.changed_positions(topology) == 2
    assert Topology().changed_positions(topology) == 3 + 2


def test_changes_of_each_weight_by_hand():
    one = Topology.from_masks({"b": torch.tensor([[True, True, False]]), "a": torch.tensor([[True, False]])})
    two = Topology.from_masks({"b": torch.tensor([[False, True, True]]), "c": torch.tensor([[False, False]])})
    assert list(one.changes(two).items()) == [("b", 2), ("a", 1), ("c", 2)]
    assert one.changes(one) == {"b": 0, "a": 0}


def test_changed_positions_counts_the_masks_difference(generator):
    shapes = {"a": (7, 9), "b": (4, 5, 3, 3)}
    one, two = ({n: torch.rand(s, generator=generator) < 0.4 for n, s in shapes.items()} for _ in range(2))
    expected = sum(int((one[n] ^ two[n]).sum()) for n in shapes)
    assert Topology.from_masks(one).changed_positions(Topology.from_masks(two)) == expected
