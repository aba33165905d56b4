"""Nodes that say anything at all: a counted failure of their own clients, or a refusal, and never more."""

import json
import math

import pytest

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsparse import wire
from fedsparse.errors import ClientError
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.plan import ClientSettings
from fedsparse.federated.store import Kept
from fedsparse.flower.engine import EXCHANGE, HAND_OVER, HELLO, FlowerEngine
from fedsparse.flower.kept import pack_kept
from fedsparse.flower.messages import content
from fedsparse.pattern import Topology
from fedsparse.wire import IndexSet, Payload
from tests.federated.small_run import Remembering, go, norm_free, same_bits, small_method, small_plan
from tests.flower.fake_grid import FIRST_NODE, FakeGrid

pytestmark = pytest.mark.usefixtures("in_a_run")
LIAR = 2  # the client; with a node for each client, its node as well
NOTES, BLOB = "fedsparse-notes", "fedsparse"


def quick_plan(**changed):
    settings = {"rounds": 3, "per_round": 6, "client": ClientSettings(batch_size=50), "build_model": norm_free}
    return small_plan(small_method("static"), **{**settings, **changed})


def engine_over(grid, **changed):
    return FlowerEngine(grid, nodes=1, timeout_s=60.0, sleep=grid.sleep, clock=grid.clock, **changed)


class Dropping(InlineEngine):
    """Client LIAR does not answer in the second exchange."""

    calls = 0

    def exchange(self, requests):
        self.calls += 1
        return super().exchange([r for r in requests if self.calls != 2 or r.client_id != LIAR])


@pytest.fixture(scope="module")
def dropped():
    torch.set_num_threads(1)
    plan = quick_plan()
    return go(plan, Dropping(plan))


def noted(**notes):
    """A reply with other notes; None takes one away."""

    def alter(reply):
        changed = {**reply.content[NOTES], **{name.replace("_", "-"): value for name, value in notes.items()}}
        records = {
            **dict(reply.content.items()),
            NOTES: ConfigRecord({k: v for k, v in changed.items() if v is not None}),
        }
        return Message(RecordDict(records), reply_to=reply.__dict__["asked"])

    return alter


def recorded(**records):
    """A reply with other records, by the letters n (notes) and b (blob); None takes one away."""

    def alter(reply):
        names = {"n": NOTES, "b": BLOB}
        changed = {**dict(reply.content.items()), **{names[key]: record for key, record in records.items()}}
        kept = {name: record for name, record in changed.items() if record is not None}
        return Message(RecordDict(kept), reply_to=reply.__dict__["asked"])

    return alter


def array(blob, stype="fedsparse/1"):
    return Array("uint8", (len(blob),), stype, blob)


LIES = {
    "token of another type": noted(token=7),
    "token that is a list": noted(token=["a" * 24]),
    "token that is no hash": noted(token="../../somewhere"),
    "digest that leads elsewhere": noted(held="../../../tmp/outside"),
    "digest in capitals": noted(held="A" * 32),
    "digest of bytes": noted(held=b"a" * 32),
    "memory that is a number": noted(remembers=1),
    "reason that is a number": noted(reason=3.0),
    "reason that is a list": noted(reason=["why"]),
    "no reason": noted(reason=None),
    "no token": noted(token=None),
    "nan seconds": noted(seconds=math.nan),
    "endless seconds": noted(seconds=math.inf),
    "negative seconds": noted(seconds=-1.0),
    "huge seconds": noted(seconds=1e300),
    "seconds in words": noted(seconds="1.0"),
    "seconds in a list": noted(seconds=[1.0, 2.0]),
    "seconds that nobody measured": noted(seconds_source="guessed"),
    "measured and not there": noted(seconds=None),
    "nan bytes": noted(peak=math.nan, peak_source="measured"),
    "huge bytes": noted(peak=1e19, peak_source="measured"),
    "source that is a list": noted(peak=1.0, peak_source=["measured"]),
    "notes that are metrics": recorded(n=MetricRecord({"token": 1})),
    "no notes": recorded(n=None),
    "no array": recorded(b=None),
    "no bytes": recorded(b=ArrayRecord({"message": array(b"")})),
    "any bytes": recorded(b=ArrayRecord({"message": array(bytes(range(256)))})),
    "two arrays": recorded(b=ArrayRecord({"message": array(b"a"), "more": array(b"b")})),
    "another kind of array": recorded(b=ArrayRecord({"message": array(b"a", "numpy.ndarray")})),
    "another version": recorded(b=ArrayRecord({"message": array(b"a", "fedsparse/2")})),
    "notes in place of the array": recorded(b=ConfigRecord({"a": 1})),
}

JUDGED_BY_SERVER = {"any bytes", "no bytes"}  # it opens the message and asks no second time


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_failure_of_its_own_client_alone(lie, dropped, tmp_path):
    plan = quick_plan()
    grid = FakeGrid(plan, nodes=6)
    mine = []

    def altered(message, reply):
        if message.metadata.message_type != EXCHANGE or message.content[NOTES]["client"] != LIAR:
            return reply
        mine.append(message)
        reply.__dict__["asked"] = message
        return LIES[lie](reply) if len(mine) in (2, 2 if lie in JUDGED_BY_SERVER else 3) else reply

    grid.altered = altered
    (tmp_path / "run").mkdir()
    outcome = go(plan, engine_over(grid), folder=tmp_path / "run")
    assert [m["clients_failed"] for m in outcome.metrics] == [0, 1, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    assert [(x["client"], x["round"]) for x in lines if x["status"] == "failed"] == [(LIAR, 1)]
    assert len(mine) == (3 if lie in JUDGED_BY_SERVER else 4)
    assert same_bits(outcome, dropped)


def test_words_of_a_node_are_cut_and_made_plain(tmp_path):
    plan = quick_plan(rounds=1)
    grid = FakeGrid(plan, nodes=6)

    def altered(message, reply):
        if message.metadata.message_type != EXCHANGE or message.content[NOTES]["client"] != LIAR:
            return reply
        reply.__dict__["asked"] = message
        return noted(reason="\x1b[2J\n" + "x" * 10_000)(reply)

    grid.altered = altered
    go(plan, engine_over(grid), folder=tmp_path)
    (line,) = [x for x in map(json.loads, (tmp_path / "clients.jsonl").read_text().splitlines()) if x["reason"]]
    assert line["reason"] == " [2J " + "x" * 1995


# ---- which clients a node serves
@pytest.mark.parametrize(
    ("partition", "partitions"),
    [
        (0, 0),
        (-1, 6),
        (6, 6),
        (7, 6),
        (2**31, 2**31 + 1),
        (True, 6),
        ("0", 6),
        ([0], 6),
        (0.0, 6),
        (None, 6),
        (0, None),
    ],
)
def test_a_node_that_serves_no_such_share_is_left_out(partition, partitions, tmp_path):
    plan = quick_plan(rounds=1)
    grid = FakeGrid(plan, nodes=6)

    def altered(message, reply):
        if message.metadata.message_type != HELLO or message.metadata.dst_node_id != FIRST_NODE + LIAR:
            return reply
        reply.__dict__["asked"] = message
        return noted(partition=partition, partitions=partitions)(reply)

    grid.altered = altered
    outcome = go(plan, engine_over(grid), folder=tmp_path)
    assert outcome.metrics[0]["clients_failed"] == 1
    (line,) = [x for x in map(json.loads, (tmp_path / "clients.jsonl").read_text().splitlines()) if x["reason"]]
    assert line["client"] == LIAR
    assert line["reason"].startswith(
        f"no Flower node serves partition {LIAR} of 6; a node that is there says: the node"
    )


def test_who_comes_second_to_a_share_does_not_take_it(tmp_path):
    plan = quick_plan()
    grid = FakeGrid(plan, nodes=6)
    late = {FIRST_NODE + 5: grid.contexts.pop(FIRST_NODE + 5)}
    late[FIRST_NODE + 5].node_config["partition-id"] = LIAR

    outcome = go(plan, engine_over(grid), on_round=lambda _: grid.contexts.update(late), folder=tmp_path)
    assert [m["clients_failed"] for m in outcome.metrics] == [1, 1, 1]
    served = {m.metadata.dst_node_id for m in grid.seen if m.metadata.message_type == EXCHANGE}
    assert FIRST_NODE + 5 not in served
    reasons = [
        x["reason"] for x in map(json.loads, (tmp_path / "clients.jsonl").read_text().splitlines()) if x["reason"]
    ]
    assert "it was started as partition 2, which another node serves; give each node a partition-id" in reasons[-1]


@pytest.mark.parametrize("odd", [0, 5])
def test_a_node_that_counts_otherwise_than_most_is_left_out(odd, tmp_path):
    plan = quick_plan(rounds=1)
    grid = FakeGrid(plan, nodes=6)
    grid.contexts[FIRST_NODE + odd].node_config["num-partitions"] = 60
    outcome = go(plan, engine_over(grid), folder=tmp_path)
    assert outcome.metrics[0]["clients_failed"] == 1
    (line,) = [x for x in map(json.loads, (tmp_path / "clients.jsonl").read_text().splitlines()) if x["reason"]]
    assert line["client"] == odd
    assert "it was started as one of 60 partitions, the others as one of 6; start it again" in line["reason"]


def test_where_no_node_says_anything_of_use_the_run_ends_with_the_reason():
    plan = quick_plan()
    grid = FakeGrid(plan, nodes=1)
    grid.contexts[FIRST_NODE].node_config["num-partitions"] = 0
    with pytest.raises(ClientError, match=r"none of 1 Flower nodes can serve clients: .*partition 0 of 0: expected"):
        go(plan, engine_over(grid))


# ---- what a node hands over for a checkpoint
def other_memory():
    return Kept("", wire.encode(Payload("memory", 0, extras={"weights": 1})))


HANDED = {
    "another memory": lambda: pack_kept(other_memory(), None),
    "bytes": lambda: b"FSPW" + bytes(100),
    "another message": lambda: wire.encode(Payload("kept", 0, extras={"a": 1})),
    "memory that is no mapping": lambda: wire.encode(Payload("kept", 0, extras={"memory": 1})),
    "masks as memory": lambda: wire.encode(Payload("kept", 0, extras={"memory": Topology()})),
    "masks that are none": lambda: wire.encode(Payload("kept", 0, extras={"memory": {}, "topology": 3})),
    "more than there is memory for": lambda: wire.encode(
        Payload("kept", 0, extras={"memory": {"a": IndexSet(10_000_000, torch.arange(5_000_000))}})
    ),
}


@pytest.mark.parametrize("handed", HANDED)
def test_what_is_not_what_the_client_kept_is_not_taken_over(handed, tmp_path):
    plan = small_plan(Remembering(), rounds=2, per_round=6)
    grid = FakeGrid(plan, nodes=6)

    def altered(message, reply):
        if message.metadata.message_type != HAND_OVER or message.content[NOTES]["client"] != LIAR:
            return reply
        return Message(content(HANDED[handed](), {"token": "a" * 24}), reply_to=message)

    grid.altered = altered
    engine = engine_over(grid, most_bytes=plan.most_bytes())
    assert same_bits(go(plan, engine, folder=tmp_path), go(plan))
    store = InlineEngine(plan)
    store.restore(tmp_path / "checkpoints" / "round-000002.clients")
    assert store._store.clients == [client for client in range(6) if client != LIAR]
