"""Engines by name, and how many threads a client has."""

import os

import pytest
import torch

from fedsparse.errors import CheckpointError, ConfigError
from fedsparse.experiment import load_config, resume, run
from fedsparse.experiment.engine import client_threads, cores
from fedsparse.experiment.plan import build_plans
from fedsparse.experiment.settings import EngineTable
from fedsparse.flower import superlink

TEXT = """
[run]
rounds = 2
[data]
clients = 3
train_limit = 100
test_limit = 50
"""


@pytest.fixture
def machine(monkeypatch):
    """A machine of 8 cores, whose torch uses 6 threads."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, 6),
        ({"workers": 2}, 3),
        ({"workers": 4}, 1),
        ({"workers": 8}, 1),
        ({"workers": 2, "threads": 5}, 5),
        ({"workers": 9, "threads": 1}, 1),
    ],
)
@pytest.mark.parametrize("kind", ["inline", "process"])
def test_workers_share_the_threads_and_inline_uses_as_many(kind, given, threads):
    assert client_threads(EngineTable(kind=kind, **given)) == threads
    assert cores() == 8


@pytest.mark.usefixtures("machine")
def test_more_workers_than_cores_are_refused():
    with pytest.raises(ConfigError) as raised:
        client_threads(EngineTable(workers=9))
    assert str(raised.value) == (
        "engine.workers = 9: expected at most 8, the cores this process may use; take fewer, or set "
        "engine.threads = 1 to have them share cores"
    )


def test_a_plan_has_the_threads_of_its_configuration():
    (plan,) = build_plans([load_config(TEXT, ["engine.threads=3"])])
    assert plan.threads == 3


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError) as raised:
        load_config(TEXT, ["engine.kind=proces"])
    assert str(raised.value) == (
        "override: engine.kind = \"proces\" is unknown; did you mean 'process'? known are inline, process, flower"
    )


def test_an_engine_that_is_not_installed_is_refused_before_there_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(superlink, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="flwr is not installed"):
        run(load_config(TEXT, ["engine.kind=flower"]))
    assert list(tmp_path.iterdir()) == []


def test_what_gives_the_same_numbers_may_change_between_start_and_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(load_config(TEXT), should_stop=lambda: True).dir
    lines = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(lines + "\n[engine]\nthreads = 2\n")
    with pytest.raises(CheckpointError, match=r"engine\.threads = 2, but the run was started with null"):
        resume(folder)
    (folder / "config.toml").write_text(lines + "\n[engine]\ntimeout_s = 5.0\nmin_clients = 2\n")
    assert not resume(folder).stopped


def test_several_clients_at_a_time_are_for_inline(tmp_path, monkeypatch):
    with pytest.raises(ConfigError) as raised:
        load_config(TEXT, ["engine.cohort_batch=2", "engine.kind=process"])
    assert str(raised.value) == (
        'override: engine.cohort_batch = 2: expected 1 with engine.kind = "process"; only "inline" serves several '
        "clients at a time; change it there or pass --set engine.cohort_batch=VALUE"
    )
    with pytest.raises(ConfigError, match=r"engine\.cohort_batch = 0: expected greater than or equal to 1; change it"):
        load_config(TEXT, ["engine.cohort_batch=0"])
    monkeypatch.chdir(tmp_path)
    result = run(load_config(TEXT, ["engine.cohort_batch=2", "data.partition=iid"]))
    assert [record["clients_folded"] for record in result.metrics] == [2, 2]  # of three clients


def test_how_many_clients_train_together_may_not_change_before_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run(load_config(TEXT), should_stop=lambda: True).dir
    lines = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(lines + "\n[engine]\ncohort_batch = 2\n")
    with pytest.raises(CheckpointError, match=r"engine\.cohort_batch = 2, but the run was started with 1"):
        resume(folder)
