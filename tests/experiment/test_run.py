"""Runs from Python: results, stopping, going on, variants, and what the data are dealt from."""

import json
from pathlib import Path

import pytest
import torch

from fedsparse.errors import CheckpointError, ConfigError, DataError
from fedsparse.experiment import load_config, resume, resume_variants, run, run_variants
from fedsparse.experiment.plan import build_plans, deal
from fedsparse.experiment.settings import DataTable

TEXT = """
[run]
name = "small"
rounds = 3
[data]
clients = 3
min_samples = 5
train_limit = 150
test_limit = 50
image_size = 16
[model]
name = "lenet"
[method]
name = "static"
density = 0.3
"""
VARIANTS = TEXT + '[[variants]]\nname = "a"\nmethod.density = 0.5\n[[variants]]\nname = "b"\n'
MEASURED = ("client_seconds", "server_seconds", "peak_bytes")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reproducible(metrics):
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in metrics]


def test_a_result_holds_what_the_folder_holds():
    seen = []
    result = run(load_config(TEXT), on_round=seen.append)
    lines = (result.dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.metrics == seen
    assert json.loads((result.dir / "summary.json").read_text()) == result.final
    assert result.final["complete"] is True
    assert not result.stopped
    kept = sum(int(mask.sum()) for mask in result.masks.values())
    assert kept == result.metrics[-1]["nnz"]
    total = sum(mask.numel() for mask in result.masks.values())
    rest = sum(p.numel() for p in result.model.parameters()) - kept
    assert (kept + rest) / (total + rest) == pytest.approx(0.3, abs=1e-3)
    assert result.final["density"] == pytest.approx(0.3, abs=1e-3)


def test_a_stopped_run_goes_on_to_the_same_end():
    config = load_config(TEXT)
    whole = run(config)
    stopped = run(config, should_stop=lambda: True)
    assert stopped.stopped
    assert len(stopped.metrics) == 1
    assert stopped.final["complete"] is False
    again = resume(stopped.dir)
    assert not again.stopped
    assert reproducible(again.metrics) == reproducible(whole.metrics)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    run(load_config(TEXT, ["run.rounds=1"]))
    assert torch.equal(torch.get_rng_state(), before)


def test_variants_stop_and_go_on_together():
    config = load_config(VARIANTS, ["run.rounds=2"])
    (stopped,) = run_variants(config, should_stop=lambda: True)
    assert stopped.stopped
    folder = stopped.dir.parent
    results = resume_variants(folder)
    assert [result.dir for result in results] == [folder / "a", folder / "b"]
    assert [result.final["complete"] for result in results] == [True, True]
    assert results[0].final["density"] == pytest.approx(0.5, abs=1e-3)


def test_one_run_and_several_are_not_confused():
    with pytest.raises(ConfigError, match="the configuration describes 2 variants, expected a single run"):
        run(load_config(VARIANTS))
    with pytest.raises(ConfigError, match=r"the configuration has no \[\[variants\]\]"):
        run_variants(load_config(TEXT))
    results = run_variants(load_config(VARIANTS, ["run.rounds=1"]))
    with pytest.raises(CheckpointError, match="holds 2 variants, expected a single run"):
        resume(results[0].dir.parent)
    with pytest.raises(CheckpointError, match=r"a single run; use fedsparse\.resume"):
        resume_variants(results[0].dir)


def test_pictures_too_small_for_the_model_are_refused_before_a_run_begins():
    with pytest.raises(ConfigError, match=r"model 'lenet' needs pictures of .*data\.image_size"):
        run(load_config(TEXT, ["data.image_size=8"]))
    assert not Path("runs").exists()


def test_the_defaults_are_a_run():
    result = run(load_config("run.rounds = 1", ["data.train_limit=300"]))
    assert result.final["complete"] is True


def test_data_are_dealt_by_the_seed_alone():
    table = DataTable(clients=4, train_limit=200, public_share=0.25)
    (first, public), (again, _), (other, _) = deal(table, seed=1), deal(table, seed=1), deal(table, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.clients, again.clients, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.clients, other.clients, strict=True))
    assert (len(public), len(first.train), sum(first.sizes)) == (50, 150, 150)


def test_the_server_has_samples_that_no_client_has():
    data, public = deal(DataTable(clients=2, public_share=0.1), seed=0)
    assert len(data.train) + len(public) == len(deal(DataTable(clients=2), seed=0)[0].train)
    clients = {bytes(x.numpy()) for x in data.train.x}
    assert sum(bytes(x.numpy()) in clients for x in public.x) == 0


def test_a_public_share_of_nothing_is_refused():
    with pytest.raises(DataError, match=r"data\.public_share = 0\.001 of 100 training samples is 0: expected at"):
        deal(DataTable(train_limit=100, public_share=0.001), seed=0)


def test_runs_on_the_same_data_share_them():
    plans = build_plans(load_config(VARIANTS).variants)
    assert plans[0].data is plans[1].data
    assert plans[0].method != plans[1].method


def test_models_of_one_seed_are_equal():
    (plan,) = build_plans([load_config(TEXT)])
    first, second = plan.build_model().state_dict(), plan.build_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
