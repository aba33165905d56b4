"""Every fault of the table in `engines/base.py`, injected into both engines."""

import json

import pytest

from fedsparse import wire
from fedsparse.errors import ClientError, WireError
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.engines.process import ProcessEngine
from tests.federated.faulty_engine import FaultyEngine
from tests.federated.small_run import exact, go, same_bits, small_method, small_plan

SIZES = (20, 30, 25, 0)

# Fault, its client's status, how its reason begins, counters beside clients_failed, and whether the client is told
# everything again. Client 1 has them all, one a round; a round without comes between.
FAULTS = [
    ("dropped", "failed", "the engine delivered no answer", {}, True),
    ("late", "failed", "the engine delivered no answer", {}, True),
    ("twice", "ok", "", {"replies_ignored": 1}, False),
    ("damaged, then whole", "ok", "", {"replies_ignored": 1}, False),
    ("stranger", "ok", "", {"replies_ignored": 1}, False),
    ("download of masks not held", "failed", "weights: topology ", {}, True),
    ("download damaged", "failed", "the checksum does not match: ", {}, True),
    ("upload of other masks", "failed", "weights: topology ", {}, False),
    ("not a number", "failed", "the upload contains NaN or infinite numbers in weights.1.bias", {}, False),
    ("truncated", "failed", "the header announces a body of ", {}, False),
    ("random", "failed", "not a fedsparse message: ", {}, False),
    ("empty", "failed", "a message has at least 18 bytes, got 0", {}, False),
]
ROUNDS = 2 * len(FAULTS) + 1
PLACES = {(2 * number + 1, 1): fault for number, (fault, *_) in enumerate(FAULTS)}


@pytest.fixture(scope="module")
def plan():
    return small_plan(small_method("static"), rounds=ROUNDS, sizes=SIZES, per_round=4, checkpoint_every=100)


@pytest.fixture(scope="module")
def topology(plan):
    return go(small_plan(plan.method, rounds=1, sizes=SIZES, per_round=4)).weights.topology


@pytest.fixture(scope="module")
def inline(plan, topology, tmp_path_factory):
    return _run(plan, InlineEngine(plan), topology, tmp_path_factory.mktemp("inline"))


@pytest.fixture(scope="module")
def process(plan, topology, tmp_path_factory):
    engine = ProcessEngine(plan, workers=2, timeout_s=600)
    try:
        return _run(plan, engine, topology, tmp_path_factory.mktemp("process"))
    finally:
        engine.close()


def _run(plan, inner, topology, folder):
    engine = FaultyEngine(inner, PLACES, topology)
    outcome = go(plan, engine, folder=folder)
    lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return outcome, engine, lines


@pytest.fixture(params=["inline", "process"])
def faulted(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault[0] for fault in FAULTS])
def test_a_fault_has_its_one_consequence(faulted, number):
    outcome, engine, lines = faulted
    _, status, reason, counters, told_again = FAULTS[number]
    round = 2 * number + 1
    counted = outcome.metrics[round]
    failed = 2 if status == "failed" else 1  # client 3 has no samples
    assert (counted["clients"], counted["clients_failed"]) == (4 - failed, failed)
    names = ("clients_retried", "asks_failed", "replies_ignored")
    assert {name: counted[name] for name in names if counted[name]} == counters
    (line,) = [x for x in lines if (x["round"], x["client"]) == (round, 1) and x["status"] != "ignored"]
    assert line["status"] == status
    assert line["reason"].startswith(reason)
    assert (line["reason"] == "") == (status == "ok")
    (after,) = [request.blob for request in engine.sent[round + 1] if request.client_id == 1]
    assert _is_complete(after) == told_again


def test_ignored_replies_are_on_record(faulted):
    outcome, _, lines = faulted
    ignored = [(x["round"], x["client"], x["reason"][:30]) for x in lines if x["status"] == "ignored"]
    assert ignored == [
        (4, 1, "the upload answers 'train' of "),
        (5, 1, "the client has answered alread"),
        (7, 1, "the header announces a body of"),
        (9, 99, "the client was not asked in th"),
    ]
    for record in outcome.metrics:
        assert record["bytes_up"] == sum(x["bytes_up"] for x in lines if x["round"] == record["round"])


def test_a_late_answer_takes_no_others_place(faulted):
    outcome, _, _ = faulted
    assert (outcome.metrics[4]["clients"], outcome.metrics[4]["replies_ignored"]) == (3, 1)


def test_a_client_without_samples_fails_each_time(faulted):
    _, _, lines = faulted
    mine = [(x["status"], x["reason"]) for x in lines if x["client"] == 3]
    assert mine == [("failed", "the client has no samples")] * ROUNDS


def test_a_lost_upload_and_a_useless_one_weigh_the_same(plan, topology, inline):
    """Whatever keeps a client's update out, the others' mean is the same."""
    lost = {place: "dropped" for place, fault in PLACES.items() if _status(fault) == "failed"}
    outcome = go(plan, FaultyEngine(InlineEngine(plan), lost, topology))
    assert same_bits(outcome, inline[0])


def _status(fault):
    return next(status for name, status, *_ in FAULTS if name == fault)


def test_both_engines_end_with_the_same_bits(inline, process):
    assert same_bits(inline[0], process[0])
    assert exact(inline[0].metrics) == exact(process[0].metrics)
    assert exact(inline[2]) == exact(process[2])


def test_a_round_without_answers_stops_the_run_and_it_can_go_on(tmp_path, topology):
    plan = small_plan(small_method("static"), rounds=3, sizes=SIZES, per_round=4)
    silence = {(1, client): "dropped" for client in range(4)}
    with pytest.raises(ClientError) as raised:
        go(plan, FaultyEngine(InlineEngine(plan), silence, topology), folder=tmp_path)
    assert str(raised.value).startswith("round 1: 0 of 4 clients delivered a usable update for 'train', engine.")
    resumed, wanted = go(plan, folder=tmp_path, resume=True), go(plan)
    assert same_bits(resumed, wanted)
    assert exact(resumed.metrics) == exact(wanted.metrics)


def test_an_exchange_of_a_method_without_answers_stops_the_run_as_well(topology):
    plan = small_plan(small_method("fedtiny"), rounds=2)
    silence = {(1, client): "dropped" for client in range(6)}  # the losses of the candidates
    with pytest.raises(ClientError, match="round 0: 0 of 4 clients delivered a usable update"):
        go(plan, FaultyEngine(InlineEngine(plan), silence, topology))


def test_failures_of_other_exchanges_are_counted(topology):
    plan = small_plan(small_method("fedtiny"), rounds=1, sizes=(20, 30), per_round=2)
    outcome = go(plan, FaultyEngine(InlineEngine(plan), {(0, 1): "truncated"}, topology))
    # The client took part in the second exchange, too: it holds the candidates, only its statistics were lost.
    counted = outcome.metrics[0]
    assert (counted["asks_failed"], counted["clients"], counted["clients_failed"]) == (1, 2, 0)


def test_a_check_that_stumbles_over_an_upload_is_the_clients_failure(tmp_path, monkeypatch):
    """A method that did not think of some upload does not end the run by it."""
    plan = small_plan(small_method("static"), rounds=1, sizes=SIZES, per_round=4)
    monkeypatch.setattr(type(plan.method), "check", lambda _self, _sent, update: update.client_id == 1 and {}["losses"])
    outcome = go(plan, folder=tmp_path)
    assert (outcome.metrics[0]["clients"], outcome.metrics[0]["clients_failed"]) == (2, 2)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert "the upload is not what the method expects: KeyError: 'losses'" in reasons


def _is_complete(blob):
    try:
        wire.decode(blob)
    except WireError:
        return False
    return True
