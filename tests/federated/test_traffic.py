"""Sums and records of replies against numbers worked out by hand."""

from dataclasses import replace

import pytest

from fedsparse import energy
from fedsparse.federated.engines.base import Reply
from fedsparse.federated.traffic import Traffic, ignored, settled
from fedsparse.measure import Reading


def reply(blob=b"12345", *, seconds=1.5, peak=1000, reason=""):
    return Reply(3, blob, reason, Reading(seconds, "s", "measured"), Reading(peak, "B", "measured"), retries=2)


def test_sums_of_trainings_and_other_exchanges():
    traffic = Traffic()
    traffic.add(reply(), 40, usable=True, samples=7, dense_bytes=100)
    traffic.add(reply(b"123", peak=3000), 30, usable=False, samples=9, dense_bytes=100)
    traffic.add(reply(None, seconds=None, peak=None), 20, usable=False, samples=5, dense_bytes=100)
    traffic.add(reply(b"1"), 10, usable=True, samples=8, dense_bytes=None)
    traffic.add(reply(None), 10, usable=False, samples=8, dense_bytes=None)
    traffic.add_ignored(1000)
    assert traffic == Traffic(
        bytes_down=110,
        bytes_up=1009,
        bytes_down_dense=300,
        bytes_up_dense=200,  # of the client that answered nothing there is none
        client_seconds=6.0,
        peak_bytes=3000,
        samples=7,
        answered=1,
        failed=2,
        asks_failed=1,
        retried=10,
        ignored=1,
    )


def test_memory_that_nobody_counted_has_no_peak():
    traffic = Traffic()
    traffic.add(reply(peak=None), 40, usable=True, samples=7, dense_bytes=None)
    assert traffic.peak_bytes is None


class Meters:
    """A meter that reads what it is told, or cannot be read."""

    def __init__(self, joules):
        self.value = joules

    def joules(self):
        if self.value is None:
            raise energy.Unavailable("no meter here")
        return self.value


@pytest.mark.parametrize(("readings", "joules"), [([2.0, 3.5], 5.5), ([2.0, None, 3.5], None)])
def test_energy_is_the_sum_of_all_readings_or_nothing(readings, joules):
    traffic = Traffic()
    for reading in readings:
        traffic.add_joules(Meters(reading))
    assert traffic.joules == joules


def test_clients_that_trained_together_are_counted_and_said():
    traffic, company = Traffic(), replace(reply(), steps_folded=3)
    for each in (company, reply()):
        traffic.add(each, 40, usable=True, samples=7, dense_bytes=100)
    assert traffic.folded == 1
    record = settled(4, company, 40, training=True, usable=True, samples=7, reason="")
    assert (record["steps_folded"], record["alone"]) == (3, "")


def test_records_of_replies():
    told = {"round": 4, "client": 3, "bytes_up": 5, "seconds": 1.5, "peak_bytes": 1000, "retries": 2}
    told |= {"steps_folded": 0, "alone": ""}
    train = settled(4, reply(), 40, training=True, usable=True, samples=7, reason="")
    assert train == {**told, "exchange": "train", "status": "ok", "samples": 7, "reason": "", "bytes_down": 40}
    ask = settled(4, reply(), 40, training=False, usable=False, samples=7, reason="late")
    assert ask == {**told, "exchange": "ask", "status": "failed", "samples": 7, "reason": "late", "bytes_down": 40}
    stray = {**told, "exchange": "none", "status": "ignored", "samples": 0, "reason": "stray", "bytes_down": 0}
    assert ignored(4, reply(reason="stray")) == stray
    assert ignored(4, reply(None, reason="stray")) == {**stray, "bytes_up": 0}
