"""Which of several results no other one beats."""

from collections.abc import Sequence

__all__ = ["front"]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that none beats, from the cheapest to the dearest.

    A point beats another when it costs no more and gains no less, and is better in one of the two. Equal points do
    not beat each other.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
