"""Settings, their errors, and how methods are found; a method of one's own in a run."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from fedsparse.errors import ClientError, ConfigError, MethodError
from fedsparse.methods import base
from fedsparse.methods.base import DynamicMethod, Method, SparseMethod, find, methods, register
from fedsparse.methods.roles import Download, client_task, is_client_task
from fedsparse.pattern import Topology
from tests.federated.small_run import SpyEngine, go, small_plan


@dataclass(frozen=True, kw_only=True)
class Moving(DynamicMethod):
    name: ClassVar[str] = "moving"


# ---- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "moving: density = 0.0; expected a share in (0, 1]"),
        ({"density": 1.5}, "moving: density = 1.5; expected a share in (0, 1]"),
        ({"density": float("nan")}, "moving: density = nan; expected a share in (0, 1]"),
        ({"distribution": "erdos"}, "moving: distribution = 'erdos'; expected one of erk, er, uniform, global"),
        ({"adjust_every": 0}, "moving: adjust_every = 0; expected a number of rounds of at least 1"),
        ({"adjust_until": -1}, "moving: adjust_until = -1; expected a round of at least 0"),
        ({"swap_fraction": 1.1}, "moving: swap_fraction = 1.1; expected a share in [0, 1]"),
        ({"swap_fraction": -0.1}, "moving: swap_fraction = -0.1; expected a share in [0, 1]"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError) as raised:
        Moving(**settings)
    assert str(raised.value) == message


def test_the_granularity_is_read():
    with pytest.raises(ConfigError) as raised:
        Moving(granularity="hexagon")
    assert str(raised.value).startswith("moving: granularity = 'hexagon'; unknown granularity 'hexagon'; expected")


def test_settings_cannot_be_changed_or_misspelt():
    with pytest.raises(AttributeError):
        Moving().density = 0.5
    with pytest.raises(TypeError, match="densty"):
        Moving(densty=0.5)


# ---- schedule
def test_adjusting_rounds():
    method = Moving(adjust_every=10, adjust_until=40)
    assert [round for round in range(60) if method.adjusts(round)] == [10, 20, 30]
    assert not any(Moving(adjust_until=0).adjusts(round) for round in range(30))


def test_swap_counts_follow_the_cosine_and_stop_at_what_is_pruned():
    # 0.4 falls to 0.3 after a third of the way: K_l = 10 of 40 swaps 3; K_l = 39 of 40 has one pruned position.
    masks = {"a": torch.arange(40).view(4, 10) < 10, "b": torch.arange(40).view(4, 10) < 39}
    topology = Topology.from_masks(masks)
    method = Moving(adjust_until=300, swap_fraction=0.4)
    assert method.swap_counts(topology, 100) == {"a": 3, "b": 1}
    assert method.swap_counts(topology, 0) == {"a": 4, "b": 1}
    assert method.swap_counts(topology, 300) == method.swap_counts(topology, 400) == {"a": 0, "b": 0}
    assert Moving(swap_fraction=0.0).swap_counts(topology, 10) == {"a": 0, "b": 0}


# ---- tasks
def test_only_marked_functions_are_client_tasks():
    method = Moving()
    assert is_client_task(method.train)
    assert not any(map(is_client_task, (method.start, method.download, method.aggregate, method.adjust)))


# ---- finding
def test_the_papers_of_this_package_are_known():
    assert {"fedavg", "static", "fedtiny"} <= set(methods())
    assert methods() == sorted(methods())
    assert find("fedtiny").name == "fedtiny"


def test_an_unknown_name_gets_a_suggestion(registry):
    known = ", ".join(methods())
    with pytest.raises(ConfigError) as raised:
        find("fedtinny")
    assert str(raised.value) == f"unknown method 'fedtinny'; did you mean 'fedtiny'? (known: {known})"
    with pytest.raises(ConfigError) as raised:
        find("zzz")
    assert str(raised.value) == f"unknown method 'zzz' (known: {known})"
    assert "zzz" not in registry


def test_registered_classes_are_found(registry):
    assert register(Moving) is Moving
    assert find("moving") is Moving
    assert "moving" in registry


def test_registering_the_same_class_again_replaces_it(registry):
    register(Moving)
    twin = type("Moving", (Moving,), {"__module__": Moving.__module__})
    register(twin)
    assert registry["moving"] is twin


def test_two_classes_of_one_name(registry):
    @dataclass(frozen=True, kw_only=True)
    class Impostor(SparseMethod):
        name: ClassVar[str] = "fedavg"

    before = registry["fedavg"]
    with pytest.raises(MethodError) as raised:
        register(Impostor)
    assert str(raised.value) == "Impostor and FedAvg are both named 'fedavg'; rename one of them"
    assert registry["fedavg"] is before


def test_a_class_without_a_name(registry):
    class Nameless(Method):
        pass

    with pytest.raises(MethodError) as raised:
        register(Nameless)
    assert str(raised.value) == "Nameless needs a class attribute `name: ClassVar[str]` to be registered"
    assert Nameless not in registry.values()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ImportError("no module 'a'"), "plug-in 'odd' (a:B) cannot be imported: no module 'a'; fix or remove it"),
        (dict, "plug-in 'odd' (a:B) is no subclass of fedsparse.methods.base.Method"),
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_plug_in_that_is_no_method_is_named(found, message, monkeypatch):
    class EntryPoint:
        name, value = "odd", "a:B"

        def load(self):
            if isinstance(found, Exception):
                raise found
            return found

    monkeypatch.setattr(base, "entry_points", lambda *, group: [EntryPoint()] if group == "fedsparse.methods" else [])
    with pytest.raises(MethodError) as raised:
        methods()
    assert str(raised.value) == message


def test_installed_plug_ins_are_found(registry, monkeypatch):
    class EntryPoint:
        def load(self):
            return Moving

    monkeypatch.setattr(base, "entry_points", lambda *, group: [EntryPoint()] if group == "fedsparse.methods" else [])
    assert "moving" not in registry
    assert find("moving") is Moving


# ---- a method of one's own
@dataclass(frozen=True, kw_only=True)
class Counting(SparseMethod):
    """Starts from random masks, sends a number down, and counts on both sides what comes back."""

    name: ClassVar[str] = "counting"
    step: int = 3

    def start(self, server):
        server.memory["heard"] = 0
        return server.weights.moved_to(self.initial_topology(server.model, "random", server.rng("mask")))

    def download(self, server, client_id):
        return Download(server.weights, {"number": client_id * self.step})

    @client_task
    def train(self, client):
        client.sgd(epochs=1)
        client.memory["rounds"] = client.memory.get("rounds", 0) + 1
        return {"number": client.extras["number"] + 1, "rounds": client.memory["rounds"]}

    def aggregate(self, server, updates):
        server.memory["heard"] += sum(update.extras["number"] for update in updates)
        server.memory["rounds"] = sum(update.extras["rounds"] for update in updates)
        server.memory["samples"] = sum(update.num_samples for update in updates)
        return super().aggregate(server, updates)


@pytest.mark.usefixtures("registry")
def test_a_method_defined_elsewhere_runs_like_any_other():
    register(Counting)
    seen = {}

    class Watched(Counting):
        def aggregate(self, server, updates):
            weights = super().aggregate(server, updates)
            seen.update(server.memory)
            return weights

    plan = small_plan(Watched(density=0.3), rounds=2, sizes=(16, 24, 32), per_round=3)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    assert find("counting") is Counting
    # clients 0, 1, 2 answer 3 * id + 1 in each of two rounds; each has trained twice
    assert seen == {"heard": 2 * (1 + 4 + 7), "rounds": 6, "samples": 72}
    assert outcome.metrics[-1]["density"] == pytest.approx(0.3, abs=3 / 9170)
    assert len(engine.exchanges) == 2


def test_a_task_without_the_mark_is_refused(tmp_path):
    class Unmarked(Method):
        name = "unmarked"

        def train(self, client):
            client.sgd()
            return {}

    with pytest.raises(ClientError, match="0 of 4 clients"):
        go(small_plan(Unmarked()), folder=tmp_path)
    assert "method 'unmarked' has no client task 'train'" in (tmp_path / "clients.jsonl").read_text()
