"""The front by hand, and against its definition."""

import pytest

from fedsparse.experiment.pareto import front


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(3.0, 0.5)], [0]),
        ([(3.0, 0.9), (1.0, 0.5), (2.0, 0.4)], [1, 0]),
        ([(1.0, 0.5), (1.0, 0.6)], [1]),
        ([(1.0, 0.5), (2.0, 0.5)], [0]),
        ([(1.0, 0.5), (1.0, 0.5)], [0, 1]),
    ],
)
def test_by_hand(points, expected):
    assert front(points) == expected


def test_it_is_what_the_definition_says(rng):
    points = [(float(cost), float(gain)) for cost, gain in rng.integers(0, 12, (80, 2))]

    def beaten(point):
        return any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points)

    assert sorted(front(points)) == [i for i, point in enumerate(points) if not beaten(point)]
    costs = [points[i][0] for i in front(points)]
    assert costs == sorted(costs)
