"""Flower's simulation: the masks, weights and bytes of the other engines."""

import json
import os
import sys

import pytest
import torch

from fedsparse import wire
from fedsparse.experiment import load_config, run

pytest.importorskip("flwr", reason="needs flwr: pip install 'fedsparse[flower]'")
pytest.importorskip("ray", reason="needs ray, for Flower's simulation: pip install 'fedsparse[flower]'")
pytestmark = pytest.mark.slow

CONFIG = """
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
def environment(monkeypatch):
    """Processes that Flower starts find this source, and Flower where it is."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("method", ["fedtiny", "fedrts"])
def test_masks_weights_and_bytes_are_those_of_the_other_engines(method, tmp_path):
    folders = {}
    for kind in ("inline", "process", "flower"):
        seen = []
        config = load_config(
            CONFIG, {"method.name": method, "engine.kind": kind, "run.out": str(tmp_path / kind), "engine.workers": 2}
        )
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
