"""Selection by gain per cost: the worked example, and every other set tried."""

import itertools

import pytest
import torch

from fedsparse.errors import PatternError
from fedsparse.pruning import by_gain

SQUARES = torch.tensor([4.0, 1.0, 0.5, 0.2, 6.0, 3.0, 0.1, 2.0])
CORE = torch.arange(8) < 2


def one(core=CORE, gains=SQUARES, *, cost=1.0, base=(0.0, 2.0), limit=8):
    mask = by_gain({"w": core}, {"w": gains}, {"w": cost}, base=base, limit=limit)["w"]
    return mask.nonzero().squeeze(1).tolist()


def test_the_worked_example():
    # D = 5, T = 4 (1.25); 4 with 6 gives 11 / 5 = 2.2; 5 with 3 > 2.2 gives 14 / 6; 7 with 2 < 2.3333 stops.
    assert one() == [0, 1, 4, 5]
    assert one(gains=7 * SQUARES) == [0, 1, 4, 5]
    assert one(limit=3) == [0, 1, 4]
    assert one(limit=1) == [0, 1]
    assert one(base=(0.0, 200.0)) == list(range(8)), "where pruning saves no time, everything that helps stays"
    assert one(base=(100.0, 2.0)) == [0, 1], "gains that come anyhow make the others small"


def test_a_larger_fixed_cost_never_keeps_less():
    sizes = [len(one(base=(0.0, fixed))) for fixed in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_no_other_set_with_the_cores_gains_more_per_cost(generator):
    for _ in range(20):
        cores = {"a": torch.rand(2, 2, generator=generator) < 0.3, "b": torch.rand(5, generator=generator) < 0.3}
        gains = {name: torch.rand(core.shape, generator=generator) for name, core in cores.items()}
        costs = {"a": 0.5, "b": 2.0}
        masks = by_gain(cores, gains, costs, base=(0.1, 1.0), limit=9)
        flat = torch.cat([core.flatten() for core in cores.values()])
        gain = torch.cat([g.flatten() for g in gains.values()]).double()
        cost = torch.tensor([0.5] * 4 + [2.0] * 5, dtype=torch.float64)

        def ratio(mask, gain=gain, cost=cost):
            return float((0.1 + gain[mask].sum()) / (1.0 + cost[mask].sum()))

        sets = (torch.tensor(bits) for bits in itertools.product((False, True), repeat=9))
        best = max(ratio(mask) for mask in sets if bool(mask[flat].all()))
        found = torch.cat([mask.flatten() for mask in masks.values()])
        assert bool(found[flat].all())
        assert ratio(found) == pytest.approx(best, rel=1e-12)


def test_ties_go_to_the_first_weight_and_the_lowest_position():
    cores = {"a": torch.tensor([True, False]), "b": torch.tensor([False, True])}
    gains = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 0.0])}
    masks = by_gain(cores, gains, {"a": 1.0, "b": 1.0}, base=(0.0, 0.0), limit=3)
    assert [mask.tolist() for mask in masks.values()] == [[True, True], [False, True]]
    assert one(gains=torch.ones(8), base=(0.0, 1.0), limit=4) == [0, 1, 2, 3]


def test_without_any_gain_the_cores_stay():
    assert one(gains=torch.zeros(8)) == [0, 1]


@pytest.mark.parametrize(
    ("gains", "cost", "message"),
    [
        (torch.full((8,), torch.nan), 1.0, "every gain must be a number of at least 0"),
        (-SQUARES, 1.0, "every gain must be a number of at least 0"),
        (SQUARES, 0.0, "every cost must be above 0, got {'w': 0.0}"),
    ],
)
def test_odd_numbers(gains, cost, message):
    with pytest.raises(PatternError) as raised:
        one(gains=gains, cost=cost)
    assert str(raised.value) == message


def test_names_must_agree():
    with pytest.raises(PatternError, match=r"^masks are given for \['w'\], gains for \['v'\], costs for \['w'\]"):
        by_gain({"w": CORE}, {"v": SQUARES}, {"w": 1.0}, base=(0.0, 0.0), limit=8)


def test_larger_entries_cost_what_their_positions_cost():
    cores = {"a": torch.tensor([True, False, False]), "b": torch.tensor([False])}
    gains = {"a": torch.tensor([4.0, 4.0, 1.0]), "b": torch.tensor([9.0])}
    sizes = {"a": torch.tensor([2, 2, 1]), "b": torch.tensor([6])}
    # Ratios 2, 1 and 3/2 against 4 / 22 and more: of 5 positions one more of a fits, the next best, b, does not.
    found = by_gain(cores, gains, {"a": 1.0, "b": 1.0}, base=(0.0, 20.0), limit=5, sizes=sizes)
    assert (found["a"].tolist(), found["b"].tolist()) == ([True, True, False], [False])
    found = by_gain(cores, gains, {"a": 1.0, "b": 1.0}, base=(0.0, 20.0), limit=11, sizes=sizes)
    assert (found["a"].tolist(), found["b"].tolist()) == ([True, True, True], [True])
