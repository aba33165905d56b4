"""Stages, limits, what is cut when time is short, and the record of a run that is ended early."""

import json
import time
from dataclasses import replace

import pytest

from benchmarks import gpu_run
from benchmarks.gpu import runner, worker
from benchmarks.gpu.context import Context
from benchmarks.gpu.protocol import STAGES, Stage, plan, select
from benchmarks.gpu.record import RunRecord, StageRecord, read, write
from benchmarks.gpu.site import ROOT, environment, stage_site
from benchmarks.gpu.sweep import Job, sweep

NAMES = [stage.name for stage in STAGES]


def seconds(budget, stages=STAGES):
    return {one.stage.name: one.seconds for one in plan(stages, budget)}


# ---- the plan
def test_the_protocol_fits_its_budget():
    assert sum(stage.limit for stage in STAGES) == 540
    assert seconds(540) == {stage.name: stage.limit for stage in STAGES}


def test_counters_go_first_then_sanitize():
    assert [name for name, given in seconds(520).items() if not given] == ["counters"]
    assert [name for name, given in seconds(470).items() if not given] == ["sanitize", "counters"]


def test_then_measuring_stages_share_what_is_left():
    """390 s: fixed stages take 205, so 185 of the 250 remain for dense, ours and step."""
    given = seconds(390)
    assert {name: given[name] for name in ("provenance", "build", "tests", "ceilings", "drift")} == {
        "provenance": 5, "build": 75, "tests": 90, "ceilings": 25, "drift": 10
    }  # fmt: skip
    assert given["dense"] == pytest.approx(85 * 185 / 250)
    assert given["ours"] == pytest.approx(105 * 185 / 250)
    assert given["step"] == pytest.approx(60 * 185 / 250)


def test_a_long_run_of_few_stages_gives_them_the_time():
    given = seconds(540, select(["provenance", "build", "dense", "ours", "drift"]))
    assert given["dense"] == pytest.approx(85 * 450 / 190)
    assert given["ours"] == pytest.approx(105 * 450 / 190)
    assert (given["provenance"], given["build"], given["drift"]) == (5, 75, 10)


def test_what_is_never_cut_gets_its_limit_even_without_time():
    given = seconds(0)
    assert [name for name, time in given.items() if time] == ["provenance", "build", "tests", "ceilings", "drift"]
    assert next(one for one in plan(STAGES, 0) if one.stage.name == "dense").cut.startswith("0 s were left")


def test_stages_are_selected_in_the_order_of_the_protocol():
    assert [stage.name for stage in select(["ours", "dense"])] == ["dense", "ours"]
    assert [stage.name for stage in select([])] == NAMES
    with pytest.raises(ValueError, match="no stage 'desne'; the stages are provenance, build"):
        select(["desne"])


# ---- one stage
@pytest.fixture
def quiet(tmp_path):
    return Context(10.0, True, tmp_path / "lines", tmp_path, clock=lambda: 0.0)


def lines(context):
    return [json.loads(line) for line in context.lines.read_text().splitlines()]


def test_a_job_that_fails_costs_the_others_nothing(quiet):
    def broken():
        yield {"a": 1}
        raise ValueError("no luck")

    sweep(quiet, [Job("one", broken), Job("two", lambda: [{"a": 2}])])
    assert lines(quiet) == [
        {"row": {"a": 1, "repeat": True}},
        {"note": "one: ValueError: no luck"},
        {"row": {"a": 2, "repeat": False}},
    ]


def test_a_stage_without_a_single_row_has_failed(quiet):
    def broken():
        raise OSError("no extension")
        yield

    with pytest.raises(RuntimeError, match="no case could be measured; the first of 2 that failed: a: OSError: no ext"):
        sweep(quiet, [Job("a", broken), Job("b", broken)])


def test_cases_that_time_did_not_allow_are_named(tmp_path):
    clock = iter([0.0, 9.5, 9.6])
    context = Context(10.0, True, tmp_path / "lines", tmp_path, clock=lambda: next(clock))
    sweep(context, [Job(name, lambda: [{}]) for name in "abc"])
    assert lines(context)[1:] == [{"note": "2 cases were not reached in time, from b to c"}]


def test_a_stage_that_hangs_is_ended_and_its_rows_are_kept(tmp_path):
    began = time.monotonic()
    stage = runner.run_stage(replace(STAGES[0], patience=0.0), 0.3, tmp_path, cpu=True)
    assert stage.status == "timeout"
    assert stage.reason.startswith("ended after")
    assert time.monotonic() - began >= 0.3
    (tmp_path / "a.jsonl").write_text('{"row": {"x": 1}}\n{"note": "n"}\n{"row": {"x"')
    (tmp_path / "a.log").write_text("log")
    kept = runner._collected("a", 1, 2, tmp_path / "a.jsonl", tmp_path / "a.log", False)
    assert (kept.rows, kept.notes, kept.log, kept.status) == ([{"x": 1}], ["n"], "log", "timeout")


def test_a_stage_that_dies_without_a_word_has_failed(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "a.log").write_text("Segmentation fault")
    dead = runner._collected("a", 1, 2, tmp_path / "a.jsonl", tmp_path / "a.log", True)
    assert (dead.status, dead.log) == ("failed", "Segmentation fault")


def test_an_error_is_a_finding(tmp_path, monkeypatch):
    def fail(_context):
        raise ZeroDivisionError("this and that")

    monkeypatch.setattr("benchmarks.gpu.stages.provenance.run", fail)
    worker.main(["provenance", "--limit", "5", "--lines", str(tmp_path / "lines"), "--cpu"])
    (end,) = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert end["status"] == "failed"
    assert end["reason"].endswith("ZeroDivisionError: this and that")


def test_processes_import_the_package_with_its_kernels(tmp_path):
    site = stage_site(tmp_path / "site")
    assert (site / "fedsparse" / "kernels" / "__init__.py").samefile(ROOT / "kernels" / "__init__.py")
    assert (site / "fedsparse" / "nn").samefile(ROOT / "fedsparse" / "nn")
    found = environment(site, {"HOME": "/h", "PYTHONPATH": "/other"})
    assert found["PYTHONPATH"].split(":") == [str(site), str(ROOT)]
    assert (found["HOME"], found["PYTHONSAFEPATH"]) == ("/h", "1")


# ---- the record
def test_a_record_survives_the_disk(tmp_path):
    record = RunRecord("now", ["--cpu"], 9.0, True, [StageRecord("dense", "done", rows=[{"a": [1]}])], {"dense": 0.1})
    write(record, tmp_path / "run.json")
    assert read(tmp_path / "run.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="is no record of format 1"):
        read(tmp_path / "run.json")


def test_drift_and_failed_tests_mark_the_file():
    rows = [{"stage": "", "change": 0.0}, {"stage": "dense", "change": -0.031}, {"stage": "ours", "change": 0.029}]
    record = RunRecord("", [], 1.0, False, [StageRecord("drift", "done", rows=rows), StageRecord("tests", "failed")])
    judged = runner.judged(record)
    assert judged.drift == {"dense": -0.031, "ours": 0.029}
    assert judged.marked == [
        "the first case of dense took -3.1% at the end; more than 3% either way",
        "the tests failed: what was measured may compute something else",
    ]


def test_the_whole_run_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Every stage but the tests, in this process: what needs a GPU says so, the others measure tiny shapes."""

    def here(stage: Stage, given, folder, *, cpu):
        out = folder / f"{stage.name}.jsonl"
        worker.main([stage.name, f"--limit={given}", f"--lines={out}", *(["--cpu"] if cpu else [])])
        (folder / "log").write_text("")
        return runner._collected(stage.name, given, 1.0, out, folder / "log", True)

    monkeypatch.setattr(runner, "run_stage", here)
    out = tmp_path / "run.json"
    names = [name for name in NAMES if name != "tests"]
    assert gpu_run.main(["--cpu", "--out", str(out), "--stages", ",".join(names)]) == 0
    record = read(out)
    assert {stage.name: stage.status for stage in record.stages} == {
        name: "done" if name in ("provenance", "dense", "ours", "step", "drift") else "unavailable" for name in names
    }
    for stage in record.stages:
        if stage.status == "unavailable":
            assert stage.reason == "the dry run (--cpu) uses no GPU"
    assert record.drift.keys() == {"dense", "ours", "step"}
    assert record.marked[-1] == "dry run on the CPU: the figures mean nothing"
    for name in ("dense", "ours", "step"):
        rows = record.rows(name)
        assert [row["repeat"] for row in rows] == [True] + [False] * (len(rows) - 1)
        assert all(row["eager"]["median"] > 0 and row["no_graph"] == "no CUDA device" for row in rows)
    assert not [note for stage in record.stages for note in stage.notes if "Error" in note]
    # two layers, three ops, the layouts of each; every precision
    assert len([row for row in record.rows("dense") if row["who"] == "dense"]) == 3 * 3 * (2 + 1)
    products = {"forward", "backward"}
    others = {"sgd", "adamw", "pack", "unpack", "swap", "regrow", "prune"}
    assert {row["op"] for row in record.rows("ours")} == products | others
    assert "MARKED: dry run" in capsys.readouterr().out


def test_bad_usage_is_said_at_once(tmp_path, capsys):
    for wrong in (["--stages", "nothing"], ["--out", str(tmp_path / "no" / "run.json")]):
        with pytest.raises(SystemExit) as ended:
            gpu_run.main(wrong)
        assert ended.value.code == 2
    assert "make it first" in capsys.readouterr().err
