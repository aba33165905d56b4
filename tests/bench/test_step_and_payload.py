"""Training steps and messages of a network that takes milliseconds."""

import json

import pytest
import torch
from torch import nn

from fedsparse.bench import payload, step
from fedsparse.bench.peers import SparseProp
from fedsparse.errors import BackendError, ConfigError, WireError


@pytest.mark.usefixtures("tiny_network")
def test_step_reports_every_network():
    report = step.measure(step.StepSettings(densities=(0.5,), batch=4, rounds=1))
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    rows = {row["name"]: row for row in found["rows"]}
    dense = ["torch dense", "torch dense channels_last", "torch bf16 autocast", "torch bf16 autocast channels_last"]
    ours = [f"{name} {detail}" for detail in ("uniform 0.5", "erk 0.1") for name in step.NETWORKS]
    assert len(ours) == 6
    assert [name for name in rows if not name.startswith("SparseProp")] == dense + ours
    best = min(rows[name]["seconds"]["median"] for name in dense[:2])
    for name in ours:
        assert rows[name]["ratios"]["torch dense"] == pytest.approx(best / rows[name]["seconds"]["median"])
        assert "torch bf16 autocast" in rows[name]["ratios"]
        if rows[name]["peak_bytes"] is not None:
            assert 0 < rows[name]["peak_bytes_above"] < rows[name]["peak_bytes"]
    (table,) = report.tables
    assert len(table.rows) == len(rows)
    assert all(len(row) == len(table.headings) for row in table.rows)


@pytest.mark.usefixtures("tiny_network", "only_torch")
def test_step_in_bfloat16_runs_every_sparse_network_in_both():
    report = step.measure(step.StepSettings(densities=(0.5,), batch=4, rounds=1, dtype="bfloat16"))
    rows = {row["name"]: row for row in report.rows}
    assert all(f"{name}{way} uniform 0.5" in rows for name in step.NETWORKS for way in ("", " autocast"))
    assert rows["fedsparse layers autocast uniform 0.5"]["ratios"]["fedsparse layers"] > 0
    with pytest.raises(ConfigError, match="unknown dtype 'float16'"):
        step.StepSettings(dtype="float16")


@pytest.mark.usefixtures("tiny_network", "only_torch")
def test_step_lists_what_is_missing():
    report = step.measure(step.StepSettings(densities=(0.5,), batch=2, rounds=1))
    assert report.notes() == ["SparseProp: left out, sparseprop is not installed"]
    assert not any(row["name"].startswith("SparseProp") for row in report.rows)


@pytest.mark.usefixtures("tiny_network")
def test_a_wrong_network_is_not_timed(monkeypatch):
    class Doubled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return 2 * self.network(x)

    monkeypatch.setattr(step, "NETWORKS", {"fedsparse doubled": Doubled})
    with pytest.raises(BackendError, match=r"fedsparse doubled uniform 0\.5 cannot be timed: wrong logits"):
        step.measure(step.StepSettings(densities=(0.5,), batch=2, rounds=1))


def test_networks_that_agree():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(3, 3, 2, 2)
    assert step.disagreement(network, network, x) is None
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    assert step.disagreement(other, network, x).startswith("wrong logits: relative error")


@pytest.mark.skipif(SparseProp().available() is not None, reason=str(SparseProp().available()))
@pytest.mark.usefixtures("tiny_network")
def test_sparseprop_takes_part():
    report = step.measure(step.StepSettings(densities=(0.5,), batch=16, rounds=1))
    assert "SparseProp uniform 0.5" in [row["name"] for row in report.rows]
    assert report.remarks == []


@pytest.mark.usefixtures("tiny_network")
def test_payload_counts_bytes_with_and_without_patterns():
    report = payload.measure(payload.PayloadSettings(densities=(0.5, 0.2), rounds=1))
    rows = report.to_json()["rows"]
    assert [(row["name"], row["known"]) for row in rows] == [
        ("dense", False),
        ("uniform 0.5", False),
        ("uniform 0.5", True),
        ("uniform 0.2", False),
        ("uniform 0.2", True),
    ]
    dense, sent, known = rows[0]["bytes"], rows[3]["bytes"], rows[4]["bytes"]
    assert known < sent < dense
    assert rows[3]["of_dense"] == sent / dense
    assert rows[3]["encode_mb_per_s"] == pytest.approx(sent / 1e6 / rows[3]["encode"]["median"])
    (table,) = report.tables
    assert all(len(row) == len(table.headings) for row in table.rows)


@pytest.mark.usefixtures("tiny_network")
def test_a_message_that_loses_something_is_not_timed(monkeypatch):
    class Empty:
        weights = None

    monkeypatch.setattr(payload, "decode", lambda *_, **__: Empty)
    with pytest.raises(WireError, match="was not read as it was written"):
        payload.measure(payload.PayloadSettings(densities=(0.5,), rounds=1))
