"""`fedsparse run` and `fedsparse resume`."""

import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fedsparse import wire

VARIANTS = """
[[variants]]
name = "dense"
method = {name = "fedavg"}

[[variants]]
name = "sparse"
"""
TIMES = ("seconds", "peak_bytes", "joules")


def metrics(folder):
    """Lines of a run without what differs from one execution to the next."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(part in k for part in TIMES)} for line in lines]


def wait_for_round(process, number):
    """Reads the output of a run until a round is reported."""
    for line in process.stdout:
        if f"round {number}/" in line:
            return
    pytest.fail(f"the run ended before round {number}: {process.stderr.read()}")


def test_a_run_writes_its_folder_and_prints_a_line_a_round(call, config):
    result = call("run", config())
    assert result.exit_code == 0, result.output
    rounds = [line.split("  ")[1] for line in result.stdout.splitlines() if " round " in line]
    assert rounds == ["round 1/2", "round 2/2"]
    assert "written to runs/small-1" in result.stdout
    names = {path.name for path in Path("runs/small-1").iterdir()}
    assert names >= {
        "config.toml",
        "resolved.json",
        "env.json",
        "metrics.jsonl",
        "clients.jsonl",
        "summary.json",
    }
    summary = json.loads(Path("runs/small-1/summary.json").read_text())
    assert summary["complete"] is True
    assert 0 < summary["accuracy"] <= 1
    assert summary["bytes_up"] == sum(line["bytes_up"] for line in metrics("runs/small-1"))


def test_json_goes_to_standard_output_alone(call, config):
    result = call("run", config(), "--json", "--out", "here", "--set", "run.rounds=1", "--engine", "inline")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["dir"], printed["stopped"], len(printed["runs"])) == ("here", False, 1)
    assert printed["runs"][0]["final"] == json.loads(Path("here/summary.json").read_text())
    assert "round 1/1" in result.stderr


def test_the_same_seed_gives_the_same_run_and_another_seed_another(call, config):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert call("run", config(), "--out", out, "--set", f"run.seed={seed}").exit_code == 0
    assert metrics("a") == metrics("b")
    assert metrics("a") != metrics("c")


def test_variants_run_in_turn_and_are_compared(call, config):
    result = call("run", config(VARIANTS), "--set", "run.rounds=1")
    assert result.exit_code == 0, result.output
    (dense,) = [line for line in result.stdout.splitlines() if line.split()[:2] == ["dense", "fedavg"]]
    assert dense.count("1.00x") == 4
    compared = call("compare", "runs/small-1", "--json")
    dense, sparse = json.loads(compared.stdout)
    assert (dense["method"], sparse["method"]) == ("fedavg", "static")
    assert sparse["bytes_up"] < dense["bytes_up"]
    assert sparse["relative"]["bytes_up"] == sparse["bytes_up"] / dense["bytes_up"]


def test_a_grid_over_seeds_runs_resumes_and_is_compared(call, config):
    flags = ("--grid", "method.density=0.3,0.2", "--seeds", "0-1", "--set", "run.rounds=1")
    result = call("run", config(), *flags)
    assert result.exit_code == 0, result.output
    names = [f"small_density-{density}_seed-{seed}" for density in (0.3, 0.2) for seed in (0, 1)]
    folder = Path("runs/small-1")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(names)
    assert metrics(folder / names[0]) != metrics(folder / names[1])
    assert "mean and standard error over seeds" in result.stdout
    shutil.rmtree(folder / names[3])
    before = metrics(folder / names[2])
    assert call("resume", folder).exit_code == 0
    assert metrics(folder / names[2]) == before
    groups = json.loads(call("compare", folder, "--over-seeds", "--json").stdout)
    assert [(group["name"], group["seeds"]) for group in groups] == [
        ("small_density-0.3", [0, 1]),
        ("small_density-0.2", [0, 1]),
    ]
    rows = json.loads(call("compare", folder, "--json").stdout)
    assert groups[0]["figures"]["accuracy"]["mean"] == (rows[0]["accuracy"] + rows[1]["accuracy"]) / 2
    assert " ± " in call("compare", folder, "--over-seeds").stdout


def test_compared_accuracies_can_be_means_of_the_last_evaluations(call, config):
    assert call("run", config(), "--set", "run.rounds=3", "--set", "run.eval_every=1").exit_code == 0
    folder = Path("runs/small-1")
    first, *rest = [line["accuracy"] for line in metrics(folder)]
    (row,) = json.loads(call("compare", folder, "--last", 2, "--json").stdout)
    (group,) = json.loads(call("compare", folder, "--last", 2, "--over-seeds", "--json").stdout)
    assert row["accuracy"] == group["figures"]["accuracy"]["mean"] == sum(rest) / 2
    (row,) = json.loads(call("compare", folder, "--last", 3, "--json").stdout)
    assert row["accuracy"] == pytest.approx((first + sum(rest)) / 3)
    refused = call("compare", folder, "--last", 0)
    assert refused.exit_code == 2
    assert "'--last'" in refused.output


def test_one_variant_by_its_name(call, config):
    result = call("run", config(VARIANTS), "--only", "sparse", "--set", "run.rounds=1", "--json")
    assert result.exit_code == 0, result.output
    (only,) = json.loads(result.stdout)["runs"]
    assert only["final"]["name"] == "sparse"
    refused = call("run", config(VARIANTS), "--only", "sparce")
    assert (refused.exit_code, "only = \"sparce\" is unknown; did you mean 'sparse'?" in str(refused.output)) == (
        2,
        True,
    )


def test_a_run_folder_can_be_run_again_as_it_is(call, config):
    assert call("run", config(), "--set", "client.lr=0.2").exit_code == 0
    assert call("run", "runs/small-1/config.toml").exit_code == 0
    assert metrics("runs/small-2") == metrics("runs/small-1")


def test_resuming_a_finished_run_changes_nothing(call, config):
    assert call("run", config()).exit_code == 0
    before = Path("runs/small-1/metrics.jsonl").read_text()
    assert call("resume", "runs/small-1").exit_code == 0
    assert Path("runs/small-1/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run"], 2, "Missing argument"),
        (["run", "gone.toml"], 2, "fedsparse: gone.toml: no such configuration file;"),
        (["run", "small.toml", "--set", "run.round=1"], 2, "fedsparse: override: unknown key run.round;"),
        (["run", "small.toml", "--set", "method.density=2"], 2, "density"),
        (["run", "small.toml", "--set", "method.density=0.0001"], 2, "density"),
        (["run", "small.toml", "--set", "method.granularity=blok:5"], 2, "[method]"),
        (["run", "small.toml", "--set", "model.hiden=[3]"], 2, "hidden"),
        (["run", "small.toml", "--set", "data.name=digit"], 2, "digits"),
        (["run", "small.toml", "--engine", "proces"], 2, "did you mean 'process'? known are inline, process"),
        (["run", "small.toml", "--engine", "flwr"], 2, "did you mean 'flower'? known are inline, process, flower"),
        (["run", "small.toml", "--set", "engine.workers=9999"], 2, "engine.workers = 9999: expected at most "),
        (
            ["run", "small.toml", "--set", "run.device=cuda:99"],
            2,
            "fedsparse: run.device = 'cuda:99': torch sees ",
        ),
        (["run", "small.toml", "--set", "data.name=mnist", "--set", "data.root=nowhere"], 1, "nowhere"),
        (["run", "small.toml", "--set", "data.public_share=0.001"], 1, "data.public_share = 0.001 of 200"),
        (
            ["run", "small.toml", "--out", "small.toml"],
            1,
            "fedsparse: small.toml: already there and not empty;",
        ),
        (["resume", "gone"], 1, "fedsparse: gone: no such folder;"),
        (["compare", "gone"], 1, "fedsparse: gone: no such folder;"),
        (["list", "things"], 2, "things"),
        (["dance"], 2, "No such command"),
    ],
)
def test_what_goes_wrong_is_one_message_and_an_exit_code(call, config, arguments, code, message):
    config()
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not Path("runs").exists()


LONG = ["--set", "run.rounds=30", "--set", "client.epochs=4"]


@pytest.fixture
def uninterrupted(call, config):
    assert call("run", config(), *LONG, "--out", "whole").exit_code == 0
    return metrics("whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_to_the_same_metrics(call, start, config, uninterrupted, number):
    process = start("run", config(), *LONG)
    wait_for_round(process, 2)
    process.send_signal(number)
    _, complaint = process.communicate()
    assert process.returncode == 1
    command = complaint.splitlines()[-1].removeprefix("stopped; go on with: ")
    assert shlex.split(command) == ["fedsparse", "resume", "runs/small-1"]
    assert 2 <= len(metrics("runs/small-1")) < len(uninterrupted)
    assert call(*shlex.split(command)[1:]).exit_code == 0
    assert metrics("runs/small-1") == uninterrupted


def test_a_killed_run_resumes_to_the_same_metrics(call, start, config, uninterrupted):
    process = start("run", config(), *LONG)
    wait_for_round(process, 2)
    process.kill()
    process.wait()
    assert call("resume", "runs/small-1").exit_code == 0
    assert metrics("runs/small-1") == uninterrupted


def test_a_variant_that_fails_keeps_no_other_from_running(call, config):
    diverging = VARIANTS.replace('{name = "fedavg"}', '{name = "fedavg"}\nclient.lr = 1e30')
    result = call("run", config(diverging), "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert list(said["failed"]) == ["dense"]
    assert [run["final"]["name"] for run in said["runs"]] == ["sparse"]
    assert said["runs"][0]["final"]["complete"] is True
    assert said["stopped"] is False
    assert "dense failed: round" in result.stderr
    assert f"failed; go on with: fedsparse resume {said['dir']}" in result.stderr
    assert "sparse" in call("compare", said["dir"]).stdout


def test_interrupted_variants_resume_with_those_not_started(call, start, config):
    process = start("run", config(VARIANTS), *LONG)
    wait_for_round(process, 1)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 1
    assert complaint.splitlines()[-1] == "stopped; go on with: fedsparse resume runs/small-1"
    assert not Path("runs/small-1/sparse").exists()
    result = call("resume", "runs/small-1", "--json")
    assert result.exit_code == 0, result.output
    assert [run["final"]["complete"] for run in json.loads(result.stdout)["runs"]] == [True, True]


def test_a_second_signal_aborts_at_once(start, config):
    process = start("run", config(), "--set", "run.rounds=2", "--set", "client.epochs=100000")
    while not Path("runs/small-1/metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
    for notice in ("stopping after this round; once more to abort at once", "aborted; go on with:"):
        process.send_signal(signal.SIGINT)
        assert any(notice in line for line in process.stderr)
    assert process.wait() == 1


# ---- workers
FEDTINY = ["--set", "method.name=fedtiny", "--set", "method.density=0.2", "--set", "method.adjust_every=2"]
WORKERS = ["--set", "engine.workers=2", "--set", "engine.threads=1"]


def test_workers_give_the_metrics_and_bytes_of_inline(call, config):
    for engine in ("inline", "process"):
        arguments = ["--out", engine, "--engine", engine, "--set", "run.rounds=5", *FEDTINY, *WORKERS]
        result = call("run", config(), *arguments)
        assert result.exit_code == 0, result.output
    assert metrics("inline") == metrics("process")
    assert sum(line["masks_changed"] for line in metrics("inline")) > 0
    ends = [Path(engine, "checkpoints/round-000005.fsp").read_bytes() for engine in ("inline", "process")]
    weights = [wire.decode(end).weights for end in ends]
    assert weights[0].topology == weights[1].topology
    ours, theirs = (dict(each.items()) for each in weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not Path("process/.clients").exists()


def test_a_run_killed_with_its_workers_resumes_to_the_same_metrics(call, start, config, uninterrupted):
    process = start("run", config(), *LONG, *WORKERS, "--engine", "process")
    wait_for_round(process, 2)
    workers = [pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # the other one notices by itself
        time.sleep(0.01)
    assert Path("runs/small-1/.clients").is_dir()
    text = Path("runs/small-1/config.toml").read_text()
    Path("runs/small-1/config.toml").write_text(text.replace('kind = "process"', 'kind = "inline"'))
    result = call("resume", "runs/small-1")
    assert result.exit_code == 0, result.output
    assert metrics("runs/small-1") == uninterrupted
    assert not Path("runs/small-1/.clients").exists()


def children(pid):
    """Process ids of the children of a process."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
