"""Turns and medians."""

import gc

import pytest

from fedsparse.bench.timing import Timing, interleave


def test_candidates_take_turns_and_warmup_does_not_count():
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "abababab"
    assert set(times) == {"a", "b"}
    assert all(0 <= t.low <= t.median <= t.high for t in times.values())


def test_quartiles_lie_inside_what_was_measured():
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Timing(3.0, 2.0, 4.0)
    assert Timing.of([1.0, 3.0]) == Timing(2.0, 1.5, 2.5)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0)


@pytest.mark.parametrize("collecting", [True, False])
def test_the_collector_is_left_as_it_was(collecting):
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            interleave({"bad": lambda: 1 / 0}, rounds=1)
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()
