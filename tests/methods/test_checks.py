"""What clients answer, judged before anyone relies on it."""

from collections import OrderedDict

import pytest
import torch

from fedsparse.errors import ClientError
from fedsparse.methods.checks import extra, names, pruned_positions
from fedsparse.pattern import Topology
from fedsparse.wire import IndexSet, SparseVector

TOPOLOGY = Topology.from_masks({name: (torch.arange(8) < 4).view(2, 4) for name in ("a", "b", "c")})
COUNTS = {"a": 2, "b": 0, "c": 1}


def found(*positions, size=8):
    return IndexSet(size, torch.tensor(positions, dtype=torch.int64))


def refused(check, *arguments, **named):
    with pytest.raises(ClientError) as raised:
        check(*arguments, **named)
    return str(raised.value)


def test_an_extra_of_the_right_type_comes_back():
    tensor = torch.ones(2)
    assert extra({"x": tensor, "n": 3}, "x", torch.Tensor) is tensor
    assert extra({"n": 3}, "n", int) == 3
    assert extra({"flag": True}, "flag", bool) is True
    nested = OrderedDict(a=1)
    assert extra({"m": nested}, "m", dict) is nested


def test_an_extra_that_is_missing_or_something_else_is_refused():
    assert refused(extra, {}, "n", int) == "the upload's 'n' is missing; expected int"
    assert refused(extra, {"n": 2.0}, "n", int) == "the upload's 'n' is of type float; expected int"
    assert refused(extra, {"n": True}, "n", int) == "the upload's 'n' is of type bool; expected int"


def test_names_must_be_those_asked_for():
    names({"a": 1, "b": 2}, ["b", "a"], "parts")
    assert refused(names, {"a": 1}, ["b", "a"], "parts") == "of the upload's parts, 'b' is missing"
    assert refused(names, {"a": 1, "c": 1}, ["a"], "parts") == "of the upload's parts, 'c' was not asked for"


def test_pruned_positions_up_to_the_counts_pass():
    for top in ({"a": found(4, 7), "c": found(5)}, {"a": found(), "c": found()}):
        pruned_positions({"top": top}, "top", counts=COUNTS, topology=TOPOLOGY, kind=IndexSet)
    values = SparseVector(8, torch.tensor([6]), torch.tensor([1.0]))
    pruned_positions({"top": {"a": values}}, "top", counts={"a": 1}, topology=TOPOLOGY, kind=SparseVector)


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        ({"a": found(4)}, "of the upload's 'top', 'c' is missing"),
        ({"a": found(4), "b": found(), "c": found()}, "of the upload's 'top', 'b' was not asked for"),
        ({"a": found(4), "c": torch.ones(1)}, "the upload's 'c' is of type Tensor; expected IndexSet"),
        (
            {"a": found(4), "c": found(4, 5)},
            "the upload's 'top' has 2 of 8 positions of 'c'; expected at most 1 of 8",
        ),
        (
            {"a": found(4, size=9), "c": found()},
            "the upload's 'top' has 1 of 9 positions of 'a'; expected at most 2 of 8",
        ),
        ({"a": found(3, 4), "c": found()}, "the upload's 'top' has position 3 of 'a', which is kept, not pruned"),
    ],
)
def test_other_positions_are_refused(top, reason):
    arguments = {"counts": COUNTS, "topology": TOPOLOGY, "kind": IndexSet}
    assert refused(pruned_positions, {"top": top}, "top", **arguments) == reason
