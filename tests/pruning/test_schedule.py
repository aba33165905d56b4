from itertools import pairwise

import pytest
import torch

from fedsparse.errors import ConfigError
from fedsparse.pattern import Pattern, Topology, parse
from fedsparse.pruning import adjusts, cosine_share, density_path, swap_counts


@pytest.mark.parametrize(
    ("fraction", "until", "points"),
    [
        (
            0.4,
            300,
            {0: 0.4, 10: 0.398904, 20: 0.395630, 50: 0.373205, 100: 0.3, 150: 0.2, 200: 0.1, 290: 0.001096},
        ),
        (0.3, 100, {0: 0.3, 10: 0.292658, 20: 0.271353, 50: 0.15}),
    ],
)
def test_cosine_share(fraction, until, points):
    for round, share in points.items():
        assert cosine_share(fraction, round, until) == pytest.approx(share, abs=5e-7)
    assert cosine_share(fraction, until, until) == 0
    assert cosine_share(fraction, until + 100, until) == 0


def test_cosine_share_hits_round_numbers_exactly():
    assert [cosine_share(0.4, round, 300) for round in (100, 150, 200)] == [0.3, 0.2, 0.1]


def test_cosine_share_without_rounds_or_fraction():
    assert cosine_share(0.4, 0, 0) == 0
    assert cosine_share(0.0, 3, 10) == 0
    for fraction in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
            cosine_share(fraction, 0, 10)
    with pytest.raises(ConfigError, match="negative"):
        cosine_share(0.1, -1, 10)


def topology(**kept):
    return Topology({name: Pattern.from_flat((10, 12), torch.arange(nnz)) for name, nnz in kept.items()})


def test_swap_counts_floor_and_clamp():
    assert swap_counts(topology(a=99, b=10, c=120, d=1, e=110), 0.3) == {
        "a": 21,
        "b": 3,
        "c": 0,
        "d": 0,
        "e": 10,
    }


def test_swap_counts_do_not_lose_one_to_binary_fractions():
    assert int(0.29 * 100) == 28
    assert swap_counts(topology(a=100), 0.29) == {"a": 20}
    assert swap_counts(topology(a=50), 0.58) == {"a": 29}
    assert int(50 * 0.58) == 28


def test_swap_counts_refuse_shares_outside_their_range():
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        swap_counts(topology(a=10), 1.5)


def test_adjusting_rounds():
    assert [round for round in range(60) if adjusts(round, 10, 40)] == [10, 20, 30]
    assert [round for round in range(6) if adjusts(round, 1, 4)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="at least 1"):
        adjusts(3, 0, 10)


def test_densities_of_pruning_steps():
    assert density_path(0.1, 1) == density_path(0.1, 1, "linear") == [0.1]
    assert density_path(0.2, 4, "linear") == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=1e-15)
    assert density_path(0.01, 4) == pytest.approx([0.01**0.25, 0.1, 0.01**0.75, 0.01], abs=1e-15)
    assert density_path(0.3, 7)[-1] == 0.3  # itself, not a power that rounds
    assert density_path(1.0, 3) == [1.0, 1.0, 1.0]
    hundred = density_path(0.001, 100)
    assert len(hundred) == 100
    assert all(later < earlier for earlier, later in pairwise(hundred))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 3), r"density in \(0, 1\] and at least 1 iteration, got 0.0 and 3"),
        ((0.5, 0), "at least 1 iteration, got 0.5 and 0"),
        ((0.5, 2, "cubic"), "unknown course of pruning 'cubic'; expected one of exponential, linear"),
    ],
)
def test_impossible_steps_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        density_path(*arguments)


def test_swaps_are_of_whole_units():
    kept = torch.zeros(8, 4, dtype=torch.bool)
    kept[:, :3] = True
    topology = Topology({"w": Pattern.from_mask(kept, parse("vector:4"))})
    assert [swap_counts(topology, share)["w"] for share in (0.0, 0.05, 0.1, 0.4, 1.0)] == [0, 0, 4, 8, 8]
