"""The recipes are valid configurations, one a method, and every method runs in the small comparison."""

from pathlib import Path

import numpy as np
import pytest

from fedsparse.data import partition
from fedsparse.experiment import load_config, run
from fedsparse.methods.base import find, methods

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
METHODS = [name for name in methods() if find(name).__module__.startswith("fedsparse.")]
COMPARED = load_config(FOLDER / "compare_small.toml").variants

STILL = {"dense", "static", "fedpaq", "fedrandprune", "small_dense", "fedprox"}  # variants whose masks do not move

# The small comparison made tiny, on embedded data; masks are adjusted in the second of two rounds.
TINY = {
    "run.rounds": 2,
    "data.name": "digits",
    "data.image_size": 8,
    "data.clients": 2,
    "data.min_samples": 5,
    "data.train_limit": 60,
    "data.test_limit": 20,
    "data.public_share": 0.2,
    "model.width": 4,
    "client.per_round": 2,
    "client.epochs": 2,
    "method.adjust_every": 1,
    "method.adjust_until": 2,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_valid_and_called_like_its_file(path):
    assert load_config(path).run.name == path.stem


def pictures(table):
    """Labels of the pictures that clients share in a recipe, of the ten equally large classes."""
    full = {"cifar10": 50_000, "fashion-mnist": 60_000, "digits": 1_797}[table.name]
    return np.repeat(np.arange(10), round((table.train_limit or full) * (1 - table.public_share)) // 10)


@pytest.mark.parametrize("path", [p for p in RECIPES if not p.stem.startswith("text")], ids=lambda path: path.name)
def test_the_pictures_of_a_recipe_suffice_for_its_clients(path):
    config = load_config(path)
    table, labels = config.data, pictures(config.data)
    dealt = partition(
        labels,
        table.clients,
        scheme=table.partition,
        alpha=table.alpha,
        min_samples=table.min_samples,
        generator=np.random.default_rng([config.run.seed, 2]),
    )
    sizes = [len(part) for part in dealt]
    assert (len(sizes), sum(sizes)) == (table.clients, len(labels))
    assert min(sizes) >= table.min_samples


def test_feddst_deals_all_pictures_to_400_skewed_clients():
    """The partition of its protocol: clients of very different size, most of which miss most classes."""
    table = load_config(FOLDER / "feddst.toml").data
    labels = pictures(table)
    dealt = partition(labels, 400, scheme="dirichlet", alpha=0.1, generator=np.random.default_rng([0, 2]))
    assert (table.clients, table.partition, table.alpha, len(labels)) == (400, "dirichlet", 0.1, 50_000)
    classes = [len(np.unique(labels[part])) for part in dealt]
    assert 2.5 < np.mean(classes) < 4.5
    assert np.quantile([len(part) for part in dealt], 0.1) < 40


@pytest.mark.parametrize("granularity", ["element", "vector:16", "block:16"])
def test_the_granularity_of_ten_rounds_reaches_every_method_with_masks(granularity):
    variants = load_config(FOLDER / "ten_rounds.toml", {"method.granularity": granularity}).variants
    assert sorted(variant.method.name for variant in variants) == sorted(METHODS)
    found = {v.run.name: getattr(v.method, "granularity", None) for v in variants}
    assert {name for name, unit in found.items() if unit is None} == {"dense", "fedprox", "small_dense"}
    assert set(found.values()) == {granularity, None}
    assert {v.method.adjusts(8) for v in variants if v.run.name not in STILL} == {True}


@pytest.mark.parametrize("name", ["demo", "fashion", "text_paper", "text_small"])
def test_these_compare_sparse_runs_with_a_dense_one(name):
    variants = load_config(FOLDER / f"{name}.toml").variants
    assert [variant.method.name for variant in variants] == ["fedavg", "static", "fedtiny"]


def test_the_demo_needs_no_files():
    assert load_config(FOLDER / "demo.toml").data.name == "digits"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_and_a_line_about_it(method):
    assert load_config(FOLDER / f"{method}.toml").method.name == method
    assert f"| `{method}.toml` |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_small_comparison_has_every_method_at_one_density():
    assert sorted(variant.method.name for variant in COMPARED) == sorted(METHODS)
    halved = load_config(FOLDER / "compare_small.toml", ["method.density=0.05"]).variants
    densities = {v.run.name: v.method.density for v in halved if hasattr(v.method, "density")}
    assert set(densities.values()) == {0.05}
    assert {v.run.name for v in COMPARED} - set(densities) == {"dense", "fedprox"}


@pytest.mark.parametrize("name", [variant.run.name for variant in COMPARED])
def test_a_method_runs_in_the_small_comparison(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (variant,) = load_config(FOLDER / "compare_small.toml", TINY, only=(name,)).variants
    result = run(variant)
    assert [record["clients_failed"] for record in result.metrics] == [0, 0]
    assert result.final["bytes_up"] > 0
