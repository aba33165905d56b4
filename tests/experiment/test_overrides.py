"""Settings laid over a configuration."""

import pytest

from fedsparse.errors import ConfigError
from fedsparse.experiment.overrides import dotted, overlay, parse_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("method.density=0.05", {"method": {"density": 0.05}}),
        ("run.rounds=3", {"run": {"rounds": 3}}),
        ("method.name=static", {"method": {"name": "static"}}),
        ('method.name="static"', {"method": {"name": "static"}}),
        ("data.root=/a=b", {"data": {"root": "/a=b"}}),
        ("model.bias=true", {"model": {"bias": True}}),
        ("model.hidden=[3, 4]", {"model": {"hidden": [3, 4]}}),
        (" run.seed = 7 ", {"run": {"seed": 7}}),
        ("run.name=", {"run": {"name": ""}}),
    ],
)
def test_a_text_is_read_as_toml_and_else_as_plain_text(text, value):
    assert parse_overrides([text]) == value


def test_dotted_keys_and_nested_tables_say_the_same():
    assert parse_overrides({"method.density": 0.1, "run.seed": 2}) == {
        "method": {"density": 0.1},
        "run": {"seed": 2},
    }
    assert parse_overrides({"method": {"density": 0.1}}) == {"method": {"density": 0.1}}


def test_the_last_of_two_overrides_wins():
    assert parse_overrides(["run.seed=1", "run.rounds=9", "run.seed=2"]) == {"run": {"seed": 2, "rounds": 9}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.density"],
            "override 'method.density': expected section.key=value, for example method.density=0.1",
        ),
        (
            ["density=0.1"],
            "override 'density': expected a key with its section, for example method.density or run.rounds",
        ),
        (
            {".x": 1},
            "override '.x': expected a key with its section, for example method.density or run.rounds",
        ),
        ("run.seed=1", "overrides = 'run.seed=1': expected a list of texts, ['run.seed=1'], or a mapping"),
    ],
)
def test_what_is_not_an_override_is_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(overrides)
    assert str(caught.value) == message


def test_overlay_goes_key_by_key_and_leaves_its_arguments_alone():
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert overlay(base, {"a": {"y": 4}, "c": 5}) == {"a": {"x": 1, "y": 4}, "b": 3, "c": 5}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_dotted_names_the_keys_of_tables():
    assert dotted({"run": {"seed": 1, "rounds": 2}, "data": {}}) == {"run.seed", "run.rounds"}
