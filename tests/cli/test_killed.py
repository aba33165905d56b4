"""A run whose processes are all killed in one moment, in the middle of a round."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fedsparse import wire
from tests.flower.troubled import install

CLIENT, ROUND, ROUNDS = 1, 3, 6


@pytest.fixture
def run(start, config, tmp_path, monkeypatch):
    """Starts a run with the method that kills, and its folder of orders; others go on in the same way."""
    orders = tmp_path / "orders"
    orders.mkdir()
    monkeypatch.syspath_prepend(str(install(tmp_path / "plugin")))
    settings = {"run.rounds": ROUNDS, "method.name": "troubled", "method.folder": orders, "engine.threads": 1}

    def begin(engine, out):
        given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        workers = ["--set", "engine.workers=2"] if engine == "process" else []
        return start("run", config(), *given, *workers, "--engine", engine, "--out", out)

    return begin, orders


def finished(process):
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint


def clients(folder):
    lines = [json.loads(line) for line in Path(folder, "clients.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "peak_bytes")} for line in lines]


def group_is_gone(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return True
    # What is left of the group are the dead that nobody has collected.
    members = [path for path in Path("/proc").glob("[0-9]*/stat") if _group(path) == number]
    return all(path.read_text().rpartition(")")[2].split()[0] in "ZX" for path in members if path.exists())


def _group(path):
    try:
        return int(path.read_text().rpartition(")")[2].split()[2])
    except OSError:
        return 0


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_a_tree_killed_in_mid_round_resumes_to_the_same_bits(run, start, engine):
    begin, orders = run
    finished(begin(engine, "whole"))
    (orders / f"{CLIENT}-{ROUND}").write_text("group")
    killed = begin(engine, "killed")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert (orders / f"{CLIENT}-{ROUND}.obeyed").exists()
    assert group_is_gone(killed.pid)
    assert len(Path("killed/metrics.jsonl").read_text().splitlines()) == ROUND
    finished(start("resume", "killed"))
    assert clients("killed") == clients("whole")
    last = f"checkpoints/round-{ROUNDS:06d}.fsp"
    mine, theirs = (wire.decode(Path(folder, last).read_bytes()).weights for folder in ("killed", "whole"))
    assert mine.topology == theirs.topology
    assert all(torch.equal(tensor, dict(theirs.items())[name]) for name, tensor in mine.items())
    assert not Path("killed/.clients").exists()
