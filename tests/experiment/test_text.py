"""Configurations of text sets, from files to summaries."""

import json

import pytest
import torch

import fedsparse as fs
from fedsparse.errors import ConfigError, DataError, InfeasibleDensityError
from fedsparse.experiment.plan import build_plans

ROLES = [{"speeches": [f"My name is {n}." * (n + 1), "Exit."]} for n in range(12)]
SMALL = {"hidden": 8, "layers": 1, "heads": 2, "context": 16, "dropout": 0.1}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "roles.jsonl").write_text("\n".join(map(json.dumps, ROLES)))
    settings = {
        "run": {"seed": 4, "rounds": 2, "out": str(tmp_path / "run")},
        "data": {"name": "federated_shakespeare", "root": str(tmp_path), "context": 16, "clients": 4},
        "model": {"name": "gpt2", **SMALL},
        "method": {"name": "static", "density": 0.6, "exclude": "none"},
        "client": {"batch_size": 4},
    }

    def make(**changes):
        lines = []
        for table, content in settings.items():
            merged = {**content, **changes.get(table, {})}
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in merged.items())]
        return fs.load_config("\n".join(lines))

    return make


def test_roles_as_natural_clients(config):
    (plan,) = build_plans([config(data={"partition": "natural", "min_samples": 3})])
    held = [plan.data.client(client).story.unique().tolist() for client in range(4)]
    assert all(len(roles) == 1 for roles in held)
    assert len({roles[0] for roles in held}) == 4
    assert min(plan.data.sizes) >= 3
    assert plan.data.train.shape == (16,)


def test_quantity_skew_deals_whole_roles(config):
    (plan,) = build_plans([config(data={"partition": "quantity", "alpha": 5.0})])
    held = [set(plan.data.client(client).story.tolist()) for client in range(4)]
    assert sum(map(len, held)) == len(set.union(*held)) == 12
    assert sum(plan.data.sizes) == len(plan.data.train)


def test_the_server_gets_whole_roles(config):
    (plan,) = build_plans([config(data={"partition": "iid", "public_share": 0.25})])
    public = set(plan.public.story.tolist())
    assert len(public) == 3
    assert len(set(plan.data.train.story.tolist()) | public) == 12
    assert not public & set(plan.data.train.story.tolist())
    with pytest.raises(DataError, match="of 12 training texts is 0: expected at least 1"):
        build_plans([config(data={"partition": "iid", "public_share": 0.01})])


def test_a_run_ends_with_both_perplexities_and_goes_on_to_the_bit(config, tmp_path):
    asked = config(data={"partition": "natural"})
    whole = fs.run(asked)
    assert {"perplexity_token", "perplexity_story"} <= whole.final.keys()
    assert whole.final["perplexity_token"] == whole.metrics[-1]["perplexity_token"] < 256
    assert whole.final == json.loads((tmp_path / "run/summary.json").read_text())
    again = fs.run(asked.with_out(tmp_path / "again"), should_stop=lambda: True)
    assert again.stopped
    resumed = fs.resume(tmp_path / "again")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.final["perplexity_story"] == whole.final["perplexity_story"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ConfigError, "partition 'dirichlet' goes by class labels; for text use quantity, iid or natural"),
        ({"data": {"partition": "iid", "context": 32}}, ConfigError, "reads 16 tokens, the data has blocks of 32"),
        (
            {"data": {"partition": "iid"}, "method": {"density": 0.2, "exclude": "output"}},
            InfeasibleDensityError,
            "density 0.2 cannot be",
        ),
        ({"data": {"partition": "iid", "image_size": 8}}, ConfigError, "image_size=8 needs pictures"),
        ({"data": {"partition": "iid", "tokenizer": "gpt"}}, DataError, "should be 'bytes' or a folder with vocab"),
        ({"data": {"partition": "natural", "min_samples": 9}}, DataError, "natural clients have 9 samples or more"),
    ],
)
def test_what_does_not_fit_shows_before_a_run(config, changes, error, message):
    with pytest.raises(error, match=message):
        build_plans([config(**changes)])


def test_a_sparse_table_reaches_low_densities(config):
    (plan,) = build_plans([config(data={"partition": "iid"}, method={"density": 0.3})])
    topology = plan.method.initial_topology(plan.network(), "magnitude", torch.Generator())
    assert "lm_head.weight" in topology
