"""Flower's simulation: the masks, weights and bytes of the other engines, and a client process that is killed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from fedsparse import wire
from fedsparse.experiment import load_config, run
from tests.flower.troubled import install

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")
pytest.importorskip("ray", reason="needs ray, for Flower's simulation: pip install 'fedsparse[flower]'")
pytestmark = pytest.mark.slow

FEDTINY = """
[run]
rounds = 2
seed = 4
[data]
name = "digits"
clients = 3
image_size = 12
train_limit = 200
test_limit = 50
[model]
name = "lenet"
[method]
name = "fedtiny"
density = 0.2
adjust_every = 1
adjust_until = 2
[engine]
threads = 1
"""
TIMES = {"client_seconds", "server_seconds", "seconds", "peak_bytes"}


def lines(folder, name):
    """The records of a run but for times and memory."""
    records = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def weights(folder, round):
    return wire.decode((folder / "checkpoints" / f"round-{round:06d}.fsp").read_bytes()).weights


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """For processes that Flower starts: this source and the plug-in."""
    path = os.pathsep.join([str(install(tmp_path / "plugin")), *(p for p in sys.path if p)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("environment")
def test_fedtiny_has_the_masks_weights_and_bytes_of_the_other_engines(tmp_path):
    folders = {}
    for kind in ("inline", "process", "flower"):
        seen = []
        config = load_config(FEDTINY, {"engine.kind": kind, "run.out": str(tmp_path / kind)})
        result = run(config, on_round=seen.append)
        folders[kind] = result.dir
        assert [record["round"] for record in seen] == [0, 1]
        assert not result.stopped
    inline = folders.pop("inline")
    assert weights(inline, 1).topology != weights(inline, 2).topology
    for folder in folders.values():
        for name in ("metrics.jsonl", "clients.jsonl"):
            assert lines(folder, name) == lines(inline, name)
        for round in (1, 2):
            mine, theirs = weights(folder, round), weights(inline, round)
            assert mine.topology == theirs.topology
            assert all(torch.equal(tensor, dict(theirs.items())[key]) for key, tensor in mine.items())
        assert {path.name for path in folder.iterdir()} == {path.name for path in inline.iterdir()}


@pytest.mark.usefixtures("environment")
def test_a_killed_client_process_is_replaced_and_a_broken_client_fails(tmp_path):
    orders, out = tmp_path / "orders", tmp_path / "run"
    orders.mkdir()
    (orders / "2-1").touch()
    changed = FEDTINY.replace('"fedtiny"', f'"troubled"\nbroken = 1\nfolder = "{orders}"')
    changed = changed.replace("adjust_every = 1\nadjust_until = 2\n", "")
    (tmp_path / "config.toml").write_text(changed + "timeout_s = 60.0\n")
    command = [
        sys.executable,
        "-c",
        "from fedsparse.cli.main import main; main()",
        "run",
        str(tmp_path / "config.toml"),
    ]
    done = subprocess.run(
        [*command, "--engine", "flower", "--out", str(out), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["stopped"]
    records = lines(out, "metrics.jsonl")
    assert [(r["clients"], r["clients_failed"]) for r in records] == [(2, 1), (2, 1)]
    assert records[1]["clients_retried"] == 2
    assert (orders / "2-1.obeyed").exists()
