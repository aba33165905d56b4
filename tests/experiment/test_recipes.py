"""The recipes are valid configurations."""

from pathlib import Path

import pytest

from fedsparse.experiment import load_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"demo.toml", "fashion.toml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_compares_sparse_runs_with_a_dense_one(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert [variant.method.name for variant in config.variants] == ["fedavg", "static", "fedtiny"]


def test_the_demo_needs_no_files():
    assert load_config(RECIPES[[path.name for path in RECIPES].index("demo.toml")]).data.name == "digits"
