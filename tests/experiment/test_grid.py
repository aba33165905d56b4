"""Grids and seeds: which runs they give, and what these are called."""

import pytest

from fedsparse.errors import ConfigError
from fedsparse.experiment import load_config
from fedsparse.experiment.grid import grid_points, point_name
from fedsparse.experiment.rundir import create, reopen

TEXT = '[run]\nname = "small"\nseed = 9\n[method]\nname = "static"\ndensity = 0.5\n'
VARIANTS = f"""{TEXT}
[[variants]]
name = "dense"
method = {{name = "fedavg"}}

[[variants]]
name = "sparse"
client.lr = 0.2
"""


def test_every_combination_the_seed_fastest():
    points = grid_points(["a.x=1,2", "b.y=static,fedavg"], "0-1")
    assert [tuple(point.values()) for point in points] == [
        (x, y, seed) for x in (1, 2) for y in ("static", "fedavg") for seed in (0, 1)
    ]
    assert list(points[0]) == ["a.x", "b.y", "run.seed"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.x=0.2,0.1,0.05", [0.2, 0.1, 0.05]),
        ("a.x=[12, 12],[3]", [[12, 12], [3]]),
        ("a.x=static,fedavg", ["static", "fedavg"]),
        ("a.x=true", [True]),
        ("a.x=block:4,1", ["block:4", 1]),
    ],
)
def test_values_are_read_as_toml_and_else_as_text(text, values):
    assert [point["a.x"] for point in grid_points([text], ())] == values


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("5", [5]), ("0-1, 4-5", [0, 1, 4, 5])]
)
def test_seeds(text, seeds):
    assert [point["run.seed"] for point in grid_points((), text)] == seeds


def test_without_grid_and_seeds_there_are_no_points():
    assert grid_points((), ()) == []


@pytest.mark.parametrize(
    ("grid", "seeds", "message"),
    [
        (["density=1"], "", "grid 'density=1': expected section.key=value,value, for example method.density=0.2,0.1"),
        (["a.x"], "", "grid 'a.x': expected section.key=value,value, for example method.density=0.2,0.1"),
        (["a.x=1", "a.x=2"], "", "grid a.x: the key is given twice; expected another key, with all its values after"),
        (["run.name=a,b"], "", "grid run.name: the key names runs, which the grid does itself;"),
        ({"a.x": []}, "", "grid a.x = []: expected a list of at least one value"),
        ({"a.x": "12"}, "", "grid a.x = '12': expected a list of at least one value"),
        (["run.seed=1"], "0-1", "grid run.seed: the seeds are given already, as [0, 1]; expected one of the two"),
        ((), "3-1", "seeds '3-1': expected numbers and ranges from low to high, for example 0-2 or 0,3,7"),
        ((), "one", "seeds 'one': expected numbers"),
        ((), "1,0-2", "seeds '1,0-2': a seed comes twice; give each once"),
    ],
)
def test_what_is_no_grid_is_refused(grid, seeds, message):
    with pytest.raises(ConfigError) as caught:
        grid_points(grid, seeds)
    assert str(caught.value).startswith(message)


def test_names_are_short_while_keys_stay_apart():
    point = {"method.density": 0.05, "model.hidden": [12, 12], "run.seed": 3}
    assert point_name("small", point, point) == "small_density-0.05_hidden-12-12_seed-3"
    point = {"data.name": "cifar10", "model.name": "mlp"}
    assert point_name("small", point, point) == "small_data.name-cifar10_model.name-mlp"


def test_a_single_run_becomes_a_variant_for_each_point():
    config = load_config(TEXT, grid={"method.density": [0.2, 0.1]}, seeds=[0, 1])
    assert [variant.run.name for variant in config.variants] == [
        f"small_density-{density}_seed-{seed}" for density in (0.2, 0.1) for seed in (0, 1)
    ]
    assert [(v.method.density, v.run.seed) for v in config.variants] == [(0.2, 0), (0.2, 1), (0.1, 0), (0.1, 1)]
    assert (config.run.name, config.run.seed, config.method.density) == ("small", 9, 0.5)


def test_variants_are_spread_over_what_their_method_has():
    config = load_config(VARIANTS, ["run.rounds=3"], grid=["method.density=0.2,0.1"], seeds="0-1")
    assert [variant.run.name for variant in config.variants] == [
        "dense_seed-0",
        "dense_seed-1",
        "sparse_density-0.2_seed-0",
        "sparse_density-0.2_seed-1",
        "sparse_density-0.1_seed-0",
        "sparse_density-0.1_seed-1",
    ]
    assert {variant.client.lr for variant in config.variants[2:]} == {0.2}
    assert {variant.run.rounds for variant in config.variants} == {3}


def test_a_grid_over_methods_leaves_out_what_one_lacks():
    config = load_config(TEXT, grid=["method.name=fedavg,static", "method.density=0.2,0.1"])
    assert [variant.run.name for variant in config.variants] == [
        "small_name-fedavg",
        "small_name-static_density-0.2",
        "small_name-static_density-0.1",
    ]


def test_a_setting_that_no_method_has_is_unknown():
    with pytest.raises(ConfigError, match=r"override: unknown key method\.densty; did you mean method\.density"):
        load_config(TEXT, grid=["method.densty=0.1"])


def test_two_values_with_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"is called small_hidden-12-12 as another point is"):
        load_config(TEXT, grid={"model.hidden": [[12, 12], "12-12"]})


def test_the_folder_of_a_grid_is_reopened_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(VARIANTS, grid=["method.density=0.2,0.1"], seeds="0-1")
    again = reopen(create(config))
    assert [v.resolved() | {"run": None} for v in again.variants] == [
        v.resolved() | {"run": None} for v in config.variants
    ]
    assert [(v.run.name, v.run.seed) for v in again.variants] == [(v.run.name, v.run.seed) for v in config.variants]
