"""The engine over a grid in this process: the bits of `inline`, and what becomes of nodes that fail."""

import pytest

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")

from fedsparse.errors import ClientError
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.flower.engine import EXCHANGE, HAND_OVER, HELLO, FlowerEngine
from fedsparse.flower.messages import STYPE
from tests.federated.small_run import Remembering, SpyEngine, exact, go, same_bits, small_method, small_plan
from tests.flower.fake_grid import FIRST_NODE, FakeGrid

TIMEOUT = 60.0
pytestmark = pytest.mark.usefixtures("in_a_run")


def engine_over(grid, **changed):
    settings = {"nodes": 1, "timeout_s": TIMEOUT, "sleep": grid.sleep, "clock": grid.clock}
    return FlowerEngine(grid, **{**settings, **changed})


def remembering(**changed):
    return small_plan(Remembering(), **{"rounds": 4, **changed})


def exchanges(grid):
    return [m for m in grid.seen if m.metadata.message_type == EXCHANGE]


def lines(folder, name):
    return (folder / name).read_text().splitlines()


@pytest.mark.parametrize("nodes", [1, 2, 6])
@pytest.mark.parametrize("name", ["fedavg", "fedtiny", "remembering"])
def test_the_bits_and_bytes_are_those_of_inline(name, nodes, tmp_path):
    plan = small_plan(small_method(name), rounds=4)
    grid = FakeGrid(plan, nodes=nodes)
    (tmp_path / "run").mkdir()
    there = go(plan, engine_over(grid), folder=tmp_path / "run")
    spy = SpyEngine(plan)
    here = go(plan, spy)
    assert same_bits(there, here)
    assert exact(there.metrics) == exact(here.metrics)
    sent = sum(len(request.blob) for pairs in spy.exchanges for request, _ in pairs)
    arrays = [a for m in exchanges(grid) for r in m.content.array_records.values() for a in r.values()]
    assert len(arrays) == len(exchanges(grid))
    assert {array.stype for array in arrays} == {STYPE}
    assert sum(len(array.data) for array in arrays) == sent == sum(m["bytes_down"] for m in there.metrics)


@pytest.mark.parametrize("fault", ["error", "refuse", "silent", "lost"])
def test_a_message_that_fails_once_is_sent_once_more(fault, tmp_path):
    plan = remembering()
    tried = []

    def faults(_, message):
        hit = message.metadata.message_type == EXCHANGE and len(tried) < 5
        tried.extend([message] if hit else [])
        return fault if hit and len(tried) == 5 else ""

    there = go(plan, engine_over(FakeGrid(plan, nodes=3, faults=faults)), folder=tmp_path)
    assert same_bits(there, go(plan))
    assert [m["clients_retried"] for m in there.metrics] == [0, 1, 0, 0]
    assert sum(m["clients_failed"] for m in there.metrics) == 0


def test_a_client_that_fails_twice_has_failed_and_keeps_what_it_kept():
    plan = remembering(per_round=6)
    to_client_2 = []

    def faults(_, message):
        if message.metadata.message_type == EXCHANGE and message.content["fedsparse-notes"]["client"] == 2:
            to_client_2.append(message)
            return "lost" if len(to_client_2) in (2, 3) else ""
        return ""

    there = go(plan, engine_over(FakeGrid(plan, nodes=3, faults=faults)))

    class Dropping(InlineEngine):
        calls = 0

        def exchange(self, requests):
            self.calls += 1
            if self.calls != 2:
                return super().exchange(requests)
            return super().exchange([r for r in requests if r.client_id != 2])

    assert [m["clients_failed"] for m in there.metrics] == [0, 1, 0, 0]
    assert same_bits(there, go(plan, Dropping(plan)))


def test_a_node_that_lost_its_state_fails_once_and_starts_afresh():
    plan = remembering(per_round=6)
    grid = FakeGrid(plan, nodes=6)

    def forget(record):
        if record["round"] == 0:
            grid.contexts[FIRST_NODE + 3].state.clear()

    there = go(plan, engine_over(grid), on_round=forget)
    assert [m["clients_failed"] for m in there.metrics] == [0, 1, 0, 0]


def test_a_stopped_run_goes_on_with_the_bits_of_an_unbroken_one(tmp_path):
    plan = remembering()
    go(plan, engine_over(FakeGrid(plan, nodes=3)), folder=tmp_path, stop_after=2)
    again = go(plan, engine_over(FakeGrid(plan, nodes=2)), folder=tmp_path, resume=True)
    assert same_bits(again, go(plan))


def test_any_engine_goes_on_from_its_checkpoint(tmp_path):
    plan = remembering()
    go(plan, engine_over(FakeGrid(plan, nodes=3)), folder=tmp_path, stop_after=1)
    go(plan, folder=tmp_path, stop_after=1, resume=True)
    again = go(plan, engine_over(FakeGrid(plan, nodes=3)), folder=tmp_path, resume=True)
    assert same_bits(again, go(plan))


def test_checkpoints_ask_for_a_topology_once_and_for_every_memory(tmp_path):
    plan = small_plan(small_method("static"), rounds=3, per_round=6)
    grid = FakeGrid(plan, nodes=6)
    go(plan, engine_over(grid), folder=tmp_path)
    assert sum(m.metadata.message_type == HAND_OVER for m in grid.seen) == 1
    plan = remembering(per_round=6, rounds=3)
    grid = FakeGrid(plan, nodes=6)
    (tmp_path / "memory").mkdir()
    go(plan, engine_over(grid), folder=tmp_path / "memory")
    assert sum(m.metadata.message_type == HAND_OVER for m in grid.seen) == 18


def test_clients_of_a_node_that_left_fail_and_those_of_one_that_came_are_served():
    plan = remembering(per_round=6, rounds=3)
    grid = FakeGrid(plan, nodes=3)
    gone = {}

    def change(record):
        if record["round"] == 0:
            gone["context"] = grid.contexts.pop(FIRST_NODE)
        if record["round"] == 1:
            grid.contexts[FIRST_NODE] = gone["context"]

    outcome = go(plan, engine_over(grid), on_round=change)
    assert [m["clients_failed"] for m in outcome.metrics] == [0, 2, 0]
    assert sum(m.metadata.message_type == HELLO for m in grid.seen) == 4


def test_nodes_that_do_not_come_end_the_run():
    plan = remembering()
    grid = FakeGrid(plan, nodes=2)
    with pytest.raises(ClientError, match=r"2 of 3 Flower nodes are there after 60 s; start the others"):
        go(plan, engine_over(grid, nodes=3))
    assert grid.nap >= TIMEOUT


def test_a_node_without_a_partition_is_told_how_to_start():
    plan = remembering()
    grid = FakeGrid(plan, nodes=1)
    grid.contexts[FIRST_NODE].node_config.clear()
    with pytest.raises(ClientError, match=r"none of 1 Flower nodes can serve clients: .*--node-config"):
        go(plan, engine_over(grid))


def test_a_silent_node_is_waited_for_as_long_as_the_settings_say(tmp_path):
    plan = remembering(rounds=1)
    grid = FakeGrid(
        plan, nodes=6, faults=lambda n, m: "silent" if m.metadata.dst_node_id == FIRST_NODE + 1 and n > 5 else ""
    )
    (tmp_path / "run").mkdir()
    outcome = go(plan, engine_over(grid), folder=tmp_path / "run")
    failed = [line for line in lines(tmp_path / "run", "clients.jsonl") if '"failed"' in line]
    asked = any(m.metadata.dst_node_id == FIRST_NODE + 1 for m in exchanges(grid))
    assert outcome.metrics[0]["clients_failed"] == len(failed) == asked
    assert not failed or "no answer within 60 s; retried: no answer within 60 s" in failed[0]
    assert grid.nap >= 2 * TIMEOUT * asked
