"""`fedsparse bench`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from fedsparse.bench import kernels, payload, round, step
from fedsparse.bench.cases import LayerCase


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Quick means milliseconds here."""
    cases = (LayerCase(4, 4, 4), LayerCase(5, 3, None))
    monkeypatch.setattr(kernels, "QUICK", replace(kernels.QUICK, cases=cases, batch=2, rounds=1))
    monkeypatch.setattr(step, "QUICK", replace(step.QUICK, densities=(0.5,), batch=2, rounds=1))
    for module in (step, payload):
        monkeypatch.setattr(
            module, "resnet18", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 40), nn.Linear(40, 10))
        )


@pytest.mark.parametrize(
    ("arguments", "heading"),
    [
        (["kernels"], "vs torch dense"),
        (["step"], "peak MB"),
        (["payload"], "encode ms"),
        (["round", "--engine", "inline"], "over bare"),
    ],
)
def test_a_table_goes_to_standard_output_and_progress_to_standard_error(call, arguments, heading):
    result = call("bench", *arguments, "--quick")
    assert result.exit_code == 0, result.output
    assert heading in result.stdout
    assert ":" in result.stderr


@pytest.mark.parametrize("what", ["kernels", "step", "payload"])
def test_json_goes_to_standard_output_alone_and_to_a_file(call, what):
    result = call("bench", what, "--quick", "--json", "--out", "found.json", "--density", "0.5", "--rounds", "2")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads(Path("found.json").read_text())
    assert printed["benchmark"] == what
    assert printed["settings"]["densities"] == [0.5]
    assert printed["settings"]["rounds"] == 2
    assert printed["rows"]
    assert printed["provenance"]["threads"] == 1


def test_densities_may_be_repeated_and_break_even_is_looked_for(call):
    result = call("bench", "kernels", "--quick", "--json", "--density", "0.5", "--density", "0.2", "--batch", "3")
    printed = json.loads(result.stdout)
    assert [row["name"] for row in printed["rows"]] == [
        "conv3x3/1 4->4 4x4 B3 d0.5",
        "linear 5->3 B3 d0.5",
        "conv3x3/1 4->4 4x4 B3 d0.2",
        "linear 5->3 B3 d0.2",
    ]
    assert {peer["name"] for peer in printed["peers"]} == {
        "torch dense",
        "torch.sparse CSR",
        "SparseProp",
        "SparseLab",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kernels", "--density", "2"], 2, "fedsparse: density = 2: expected a share in (0, 1]"),
        (["step", "--density", "0"], 2, "fedsparse: density = 0"),
        (["payload", "--density", "-1"], 2, "fedsparse: density = -1"),
        (["kernels", "--isa", "mmx"], 2, "fedsparse: isa = 'mmx': this processor runs "),
        (["kernels", "--threads", "0"], 2, "--threads"),
        (["kernels", "--batch", "0"], 2, "--batch"),
        (["step", "--out", "no/such/file.json"], 2, "fedsparse: no/such/file.json: there is no folder no/such"),
        (["step", "--out", "."], 2, "is a folder; name a file in it"),
        (["round", "--engine", "ray"], 2, "fedsparse: engine = 'ray': expected inline or process"),
        (["dance"], 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_one_message_and_an_exit_code(call, arguments, code, message):
    result = call("bench", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_rounds_of_both_engines_carry_the_same_bytes(call):
    result = call("bench", "round", "--quick", "--json", "--clients", "3", "--clients", "5", "--per-round", "4")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    rows = {(row["engine"], row["clients"]): row for row in printed["rows"]}
    assert set(rows) == {(engine, clients) for engine in ("inline", "process") for clients in (3, 5)}
    for clients, per_round in ((3, 3), (5, 4)):
        inline, process = rows["inline", clients], rows["process", clients]
        assert inline["per_round"] == process["per_round"] == per_round
        for name in ("bytes_down", "bytes_up"):
            assert inline[name] == process[name]
    # Masks travelled in the rounds before, so a client is sent values alone, and each as many.
    assert 3 * rows["inline", 5]["bytes_up"] == 4 * rows["inline", 3]["bytes_up"]
    for row in rows.values():
        assert row["seconds"]["median"] > row["exchange"]["median"] > row["bare"]["median"] * 0.5 > 0
        assert row["peak_bytes"] > 0
        assert len(row["rss_bytes"]) == round.QUICK.rounds


@pytest.mark.parametrize("what", ["kernels", "step", "payload", "round"])
def test_help_shows_an_example(call, what):
    result = call("bench", what, "--help")
    assert result.exit_code == 0
    assert f"Example: fedsparse bench {what}" in result.stdout
