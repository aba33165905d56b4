"""Seconds and bytes are those of the work inside, whatever happens around it."""

import threading
import time

import pytest
import torch

import fedsparse as fs
from fedsparse import _native
from fedsparse.measure import Reading

MIB = 1 << 20
# An allocation of the C library is a little larger than asked: its header, and whole pages beyond 128 KiB.
SLACK = 16 * 1024

counted = pytest.mark.skipif(
    not _native.extension().memory_counted(), reason="the allocator cannot be counted on this system"
)


@counted
@pytest.mark.parametrize("mib", [1, 3, 16])
def test_counts_one_allocation(mib):
    with fs.measure() as m:
        kept = torch.empty(mib * MIB, dtype=torch.uint8)
    assert kept.numel() <= m.peak_bytes.value <= kept.numel() + SLACK


@counted
def test_peak_is_the_most_held_at_once():
    with fs.measure() as m:
        first = torch.empty(4 * MIB, dtype=torch.uint8)
        del first
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        third = torch.empty(3 * MIB, dtype=torch.uint8)
    assert 5 * MIB <= m.peak_bytes.value <= 5 * MIB + 2 * SLACK
    assert second.numel() + third.numel() == 5 * MIB


@counted
def test_what_was_there_before_does_not_count():
    before = torch.empty(8 * MIB, dtype=torch.uint8)
    with fs.measure() as m:
        inside = torch.empty(MIB, dtype=torch.uint8)
        del before
        later = torch.empty(2 * MIB, dtype=torch.uint8)
    # 8 MiB below the level at entry when `later` comes: the peak was the first allocation.
    assert MIB <= m.peak_bytes.value <= MIB + SLACK
    assert inside.numel() + later.numel() == 3 * MIB


@counted
def test_nothing_allocated():
    x = torch.zeros(1000)
    with fs.measure() as m:
        x.add_(1)
    assert 0 <= m.peak_bytes.value <= SLACK


@counted
def test_a_nested_measurement_keeps_the_outer_peak():
    with fs.measure() as outer:
        large = torch.empty(8 * MIB, dtype=torch.uint8)
        del large
        with fs.measure() as inner:
            small = torch.empty(MIB, dtype=torch.uint8)
        assert MIB <= inner.peak_bytes.value <= MIB + SLACK
        del small
    assert 8 * MIB <= outer.peak_bytes.value <= 8 * MIB + 2 * SLACK


@counted
def test_an_inner_peak_is_seen_outside():
    with fs.measure() as outer:
        kept = torch.empty(2 * MIB, dtype=torch.uint8)
        with fs.measure() as inner:
            large = torch.empty(8 * MIB, dtype=torch.uint8)
            del large
    assert 8 * MIB <= inner.peak_bytes.value <= 8 * MIB + SLACK
    assert 10 * MIB <= outer.peak_bytes.value <= 10 * MIB + 2 * SLACK
    assert kept.numel() == 2 * MIB


@counted
def test_other_threads_count():
    def work():
        torch.empty(4 * MIB, dtype=torch.uint8)

    thread = threading.Thread(target=work)
    with fs.measure() as m:
        thread.start()
        thread.join()
    assert m.peak_bytes.value >= 4 * MIB


@counted
def test_resized_storage_counts_once():
    storage = torch.empty(2 * MIB, dtype=torch.uint8).untyped_storage()
    with fs.measure() as m:
        storage.resize_(6 * MIB)
    # The old block is freed after the new one is filled.
    assert 4 * MIB <= m.peak_bytes.value <= 6 * MIB + SLACK


def test_seconds_are_those_of_the_clock():
    start = time.perf_counter()
    with fs.measure() as m:
        time.sleep(0.02)
    assert 0.02 <= m.seconds.value <= time.perf_counter() - start


def test_sources_and_units():
    before = fs.measure()
    assert before.seconds == Reading(None, "s", "unavailable")
    assert before.peak_bytes == Reading(None, "B", "unavailable")
    with fs.measure("cpu") as m:
        pass
    assert (m.seconds.unit, m.seconds.source) == ("s", "measured")
    assert before.joules == Reading(None, "J", "unavailable")
    assert (m.joules.value is None, bool(m.joules.reason)) == (m.joules.source == "unavailable",) * 2
    assert m.joules.unit == "J"
    assert m.peak_bytes.unit == "B"
    expected = "measured" if _native.extension().memory_counted() else "unavailable"
    assert m.peak_bytes.source == expected


def test_work_that_fails_is_measured_too():
    m = fs.measure()
    with pytest.raises(ZeroDivisionError), m:
        raise ZeroDivisionError
    assert m.seconds.value > 0
