"""Trackers, with fakes in the place of the packages that report to the outside."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fedsparse as fs
from fedsparse.experiment.trackers import TrackedRun, require, tracked, trackers
from fedsparse.experiment.trackers.sink import numbers

CONFIG = """
[run]
name = "small"
rounds = 2
trackers = ["wandb", "mlflow"]
[data]
clients = 2
train_limit = 60
test_limit = 30
[model]
hidden = [8]
"""
ROUND = {"round": 3, "kind": "train", "accuracy": 0.5, "nnz": 7, "joules": None, "diverged": False}


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path):
    return TrackedRun("small", tmp_path, {"run.seed": 1})


@pytest.fixture
def fake(monkeypatch):
    """Puts a module in the place of a package; the tracker is imported anew around it."""

    def put(name, **content):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, f"fedsparse.experiment.trackers.{name}", raising=False)

    yield put
    for name in trackers():
        sys.modules.pop(f"fedsparse.experiment.trackers.{name}", None)


@pytest.fixture
def wandb(fake):
    """Calls of a fake W&B, in order."""
    calls = []

    def init(**arguments):
        calls.append(("init", arguments))
        return SimpleNamespace(
            id="abc",
            log=lambda values, step: calls.append(("log", values, step)),
            finish=lambda: calls.append(("finish",)),
        )

    fake("wandb", init=init)
    return calls


@pytest.fixture
def mlflow(fake):
    """Calls of a fake MLflow, in order."""
    calls = []

    def start_run(**arguments):
        calls.append(("start", arguments))
        return SimpleNamespace(info=SimpleNamespace(run_id="xyz"))

    fake(
        "mlflow",
        start_run=start_run,
        log_params=lambda settings: calls.append(("params", settings)),
        log_metrics=lambda values, step, run_id: calls.append(("metrics", values, step, run_id)),
        end_run=lambda: calls.append(("end",)),
    )
    return calls


def test_numbers_are_what_was_available():
    assert numbers(ROUND) == {"accuracy": 0.5, "nnz": 7.0, "diverged": 0.0}


def test_wandb_is_opened_told_and_closed_and_the_run_found_again(wandb, run):
    for _ in range(2):
        with tracked(["wandb"], run) as record:
            record(ROUND)
    first, second = wandb[:3], wandb[3:]
    assert (first[0][1]["name"], first[0][1]["config"]) == ("small", {"run.seed": 1})
    assert (first[0][1]["id"], first[0][1]["resume"]) == (None, None)
    assert first[1:] == [("log", {"accuracy": 0.5, "nnz": 7.0, "diverged": 0.0}, 3), ("finish",)]
    assert (second[0][1]["id"], second[0][1]["resume"]) == ("abc", "allow")


def test_mlflow_is_opened_told_and_closed_and_the_run_found_again(mlflow, run):
    for _ in range(2):
        with tracked(["mlflow"], run) as record:
            record(ROUND)
    metrics = ("metrics", {"accuracy": 0.5, "nnz": 7.0, "diverged": 0.0}, 3, "xyz")
    assert mlflow == [
        ("start", {"run_id": None, "run_name": "small"}),
        ("params", {"run.seed": 1}),
        metrics,
        ("end",),
        ("start", {"run_id": "xyz", "run_name": None}),
        metrics,
        ("end",),
    ]


def test_a_run_reports_its_rounds(wandb, mlflow):
    result = fs.run(fs.load_config(CONFIG))
    assert [call[2] for call in wandb if call[0] == "log"] == [0, 1]
    assert [call[1]["accuracy"] for call in mlflow if call[0] == "metrics"] == [m["accuracy"] for m in result.metrics]
    settings = next(call[1] for call in mlflow if call[0] == "params")
    assert (settings["run.name"], settings["method.name"]) == ("small", "fedavg")


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(wandb, fake):
    def broken(*_, **__):
        raise ConnectionError("no network")

    fake("mlflow", start_run=lambda **_: SimpleNamespace(info=SimpleNamespace(run_id="x")), log_metrics=broken)
    sys.modules["mlflow"].log_params = lambda _: None
    with pytest.warns(UserWarning, match="tracker mlflow is left out from here on: ConnectionError: no network"):
        result = fs.run(fs.load_config(CONFIG))
    assert len(result.metrics) == 2
    assert [call[2] for call in wandb if call[0] == "log"] == [0, 1]


def test_a_run_that_fails_closes_its_trackers(wandb, run):
    with pytest.raises(ZeroDivisionError), tracked(["wandb"], run):
        raise ZeroDivisionError
    assert wandb[-1] == ("finish",)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_what_is_not_installed_is_named_with_its_extra_before_a_folder_is_made(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"fedsparse.experiment.trackers.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(
        fs.MissingExtraError, match=rf"run\.trackers: {name} is not .*pip install 'fedsparse\[{name}\]'"
    ):
        fs.run(fs.load_config(CONFIG, {"run.trackers": [name]}))
    assert not Path("runs").exists()


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(fs.ConfigError, match=r'run\.trackers = "wandp" is unknown; did you mean \'wandb\''):
        fs.load_config(CONFIG, {"run.trackers": ["wandp"]})


def test_without_trackers_nothing_is_imported():
    result = fs.run(fs.load_config(CONFIG, {"run.trackers": []}))
    assert result.dir.exists()
    assert not {f"fedsparse.experiment.trackers.{name}" for name in trackers()} & set(sys.modules)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_files_hold_the_rounds():
    pytest.importorskip("tensorboard", reason="pip install 'fedsparse[tensorboard]'")
    require(["tensorboard"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fs.run(fs.load_config(CONFIG, {"run.trackers": ["tensorboard"]}))
    events = EventAccumulator(str(result.dir / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("accuracy")]
    lines = [json.loads(line) for line in (result.dir / "metrics.jsonl").read_text().splitlines()]
    assert found == [(line["round"], pytest.approx(line["accuracy"])) for line in lines]
    assert "joules" not in events.Tags()["scalars"] or lines[0]["joules"] is not None
