"""Configuration files: what they give, and word for word what is refused."""

import math

import pytest

from fedsparse.errors import ConfigError
from fedsparse.experiment import load_config

TINY = """
[run]
name = "tiny"
rounds = 3

[method]
name = "fedtiny"
density = 0.2
adjust_every = 2
"""


def refusal(text, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(text, overrides)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(tmp_path):
    file = tmp_path / "empty.toml"
    file.write_text("")
    config = load_config(file)
    assert (config.data.name, config.method.name, config.engine.kind) == ("digits", "fedavg", "inline")
    assert config.variants == ()


def test_a_path_and_its_text_give_the_same_configuration(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    assert load_config(str(file)) == load_config(file) == load_config(TINY)


def test_method_settings_reach_the_method():
    config = load_config(TINY)
    assert (config.method.name, config.method.density, config.method.adjust_every) == ("fedtiny", 0.2, 2)


def test_a_whole_number_is_taken_for_a_float():
    lr = load_config("[client]\nlr = 1").client.lr
    assert isinstance(lr, float)
    assert lr == 1.0


@pytest.mark.parametrize(
    "overrides", [{"method.density": 0.05}, ["method.density=0.05"], {"method": {"density": 0.05}}]
)
def test_overrides_win_over_the_file(overrides):
    config = load_config(TINY, overrides)
    assert (config.method.density, config.method.adjust_every, config.run.rounds) == (0.05, 2, 3)


def test_another_method_keeps_the_settings_that_both_have():
    method = load_config(TINY, ["method.name=static"]).method
    assert (method.name, method.density) == ("static", 0.2)
    assert not hasattr(method, "adjust_every")


def test_a_typing_error_is_found_even_where_another_method_is_chosen():
    text = TINY + "densty = 0.1"
    assert "unknown key method.densty; did you mean method.density?" in refusal(text, ["method.name=static"])


def test_another_model_drops_the_options_of_the_first():
    text = '[model]\nname = "resnet18"\nwidth = 8'
    assert load_config(text).model.options == {"width": 8}
    assert load_config(text, ["model.name=mlp"]).model.options == {}


def test_resolved_holds_every_setting():
    resolved = load_config(TINY).resolved()
    assert list(resolved) == ["run", "data", "model", "method", "client", "engine"]
    assert resolved["run"]["rounds"] == 3
    assert resolved["method"]["name"] == "fedtiny"
    assert resolved["method"]["density"] == 0.2
    assert resolved["client"]["batch_size"] == 32


class TestRefusals:
    def test_unknown_key(self):
        assert refusal("[run]\nround = 1") == (
            "configuration text: unknown key run.round; did you mean run.rounds? "
            "[run] takes name, seed, rounds, device, out, eval_every, checkpoint_every, trackers"
        )

    def test_unknown_method_setting(self):
        message = refusal('[method]\nname = "static"\ndensty = 0.1')
        assert message.startswith("configuration text: unknown key method.densty; did you mean method.density? ")

    def test_unknown_table(self):
        assert refusal("[clients]\nlr = 1") == (
            "configuration text: unknown table clients; did you mean [client]? "
            "the tables are run, data, model, method, client, engine and variants"
        )

    def test_a_key_outside_a_table(self):
        assert refusal("rounds = 3\nseed = 1").startswith("configuration text: unknown table rounds;")
        assert refusal("run = 3\n") == ("configuration text: run = 3: expected a table; write [run] and its keys below")

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ('run.rounds = "ten"', 'run.rounds = "ten": expected a valid integer'),
            ("run.rounds = 2.5", "run.rounds = 2.5: expected a valid integer"),
            ("run.rounds = 0", "run.rounds = 0: expected greater than or equal to 1"),
            ("run.rounds = true", "run.rounds = true: expected a valid integer"),
            ('run.name = "a/b"', "run.name = \"a/b\": expected text that should match pattern "
             "'^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
            ('client.lr = "fast"', 'client.lr = "fast": expected a valid number'),
            ("client.lr = nan", "client.lr = nan: expected a finite number"),
            ("client.momentum = 1.0", "client.momentum = 1.0: expected less than 1"),
            ('data.partition = "random"', "data.partition = \"random\": "
             "expected 'dirichlet', 'iid', 'natural', 'quantity' or 'shards'"),
            ("data.name = 3", "data.name = 3: expected a valid string"),
            ("model.name = 3", "model.name = 3: expected a valid string"),
            ("client.per_round = 9", "client.per_round = 9: expected at most data.clients = 8"),
            ("engine.min_clients = 9", "engine.min_clients = 9: expected at most 8, the clients of a round"),
            ("run.seed = 1979-05-27", "run.seed = \"1979-05-27\": expected a valid integer"),
        ],
    )  # fmt: skip
    def test_wrong_type_or_range(self, line, expected):
        key = line.split(" ")[0]
        message = f"configuration text: {expected}; change it there or pass --set {key}=VALUE"
        assert refusal(line) == message

    def test_an_override_is_named_as_the_source(self):
        assert refusal(TINY, ["run.rounds=many"]) == (
            'override: run.rounds = "many": expected a valid integer; change it there or pass --set run.rounds=VALUE'
        )

    def test_unknown_data_set_and_model(self):
        message = refusal("[data]\nname = 'digit'")
        assert message.startswith(
            "configuration text: data.name = \"digit\" is unknown; did you mean 'digits'? known are "
        )
        message = refusal("[model]\nname = 'restnet18'")
        assert message.startswith(
            "configuration text: model.name = \"restnet18\" is unknown; did you mean 'resnet18'? known are "
        )

    def test_a_setting_of_another_method(self):
        message = refusal('[method]\nname = "static"\nadjust_every = 3')
        assert message.startswith("configuration text: unknown key method.adjust_every; ")
        assert " method static takes density, " in message

    def test_unknown_method(self):
        message = refusal('[method]\nname = "fedtinny"')
        assert message.startswith("configuration text: method.name: ")
        assert "fedtiny" in message

    def test_method_setting_of_the_wrong_type(self):
        assert refusal('[method]\nname = "static"\ndensity = "low"') == (
            'configuration text: method.density = "low": expected a valid number; '
            "change it there or pass --set method.density=VALUE"
        )

    @pytest.mark.parametrize("density", [0, -0.1, 1.5, math.inf])
    def test_impossible_density(self, density):
        message = refusal(f'[method]\nname = "static"\ndensity = {density}')
        assert message.startswith("configuration text: ")
        assert "density" in message

    def test_missing_file(self, tmp_path):
        path = tmp_path / "gone.toml"
        assert refusal(str(path)) == (
            f"{path}: no such configuration file; give the path of a TOML file, for example recipes/demo.toml"
        )

    def test_a_folder_in_place_of_a_file(self, tmp_path):
        assert refusal(tmp_path).startswith(f"{tmp_path}: not readable as a UTF-8 text file")

    def test_bad_toml_names_file_and_line(self, tmp_path):
        path = tmp_path / "bad.toml"
        path.write_text("[run]\nrounds = ten\n")
        message = refusal(path)
        assert message.startswith(f"{path}: not valid TOML: ")
        assert "line 2" in message


VARIANTS = (
    TINY
    + """
[client]
lr = 0.1

[[variants]]
name = "dense"
method = {name = "fedavg"}

[[variants]]
name = "sparser"
method.density = 0.1
client.lr = 0.2
"""
)


class TestVariants:
    def test_each_lies_over_the_file(self):
        config = load_config(VARIANTS)
        dense, sparser = config.variants
        assert config.run.name == "tiny"
        assert (dense.run.name, dense.method.name, dense.client.lr, dense.run.rounds) == (
            "dense",
            "fedavg",
            0.1,
            3,
        )
        assert (sparser.run.name, sparser.method.name, sparser.method.density) == ("sparser", "fedtiny", 0.1)
        assert (sparser.client.lr, sparser.method.adjust_every) == (0.2, 2)
        assert all(variant.variants == () for variant in config.variants)

    def test_overrides_hold_for_all(self):
        config = load_config(VARIANTS, ["run.rounds=1", "client.lr=0.3"])
        assert [(v.run.rounds, v.client.lr) for v in config.variants] == [(1, 0.3), (1, 0.3)]

    def test_an_override_of_a_method_setting_holds_where_the_method_has_it(self):
        dense, sparser = load_config(VARIANTS, ["method.density=0.05", "method.adjust_every=7"]).variants
        assert not hasattr(dense.method, "density")
        assert (sparser.method.density, sparser.method.adjust_every) == (0.05, 7)

    def test_an_override_that_no_variant_has_a_use_for_is_refused(self):
        assert "override: unknown key method.score;" in refusal(VARIANTS, ["method.score=random"])

    def test_a_wrong_setting_names_its_variant(self):
        text = TINY + '[[variants]]\nname = "bad"\nclient.epochs = 0'
        assert refusal(text) == (
            "configuration text: variant 'bad': client.epochs = 0: expected greater than or equal to 1; "
            "change it there or pass --set client.epochs=VALUE"
        )

    def test_names_are_needed_and_differ(self):
        expected = "configuration text: variant {} has name {}: expected text that no other variant has"
        assert refusal("[[variants]]\nclient.lr = 1") == expected.format(1, None)
        assert refusal('[[variants]]\nname = "a"\n[[variants]]\nname = "a"') == expected.format(2, "'a'")

    def test_a_name_must_serve_as_a_folder(self):
        assert 'run.name = "a/b": expected text that should match pattern' in refusal('[[variants]]\nname = "a/b"')

    def test_name_and_folder_of_a_variant_are_not_settings(self):
        message = refusal('[[variants]]\nname = "a"\nrun.out = "here"')
        assert message.startswith("configuration text: variant 'a': run.out cannot be set in a variant;")

    def test_variants_are_tables(self):
        assert refusal("variants = 3\n") == (
            "configuration text: variants: expected [[variants]] tables, each with a name"
        )

    def test_variants_cannot_be_overridden(self):
        message = refusal(VARIANTS, {"variants": {"name": "x"}})
        assert message == "override variants: variants are set in the file alone; edit its [[variants]] tables"


THREE = '[[variants]]\nname = "a"\n[[variants]]\nname = "b"\n[[variants]]\nname = "c"\n'


def test_only_some_variants_in_the_order_of_the_file():
    assert [v.run.name for v in load_config(THREE, only=("c", "a")).variants] == ["a", "c"]


def test_a_variant_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match='only = "d" is unknown; known are a, b, c'):
        load_config(THREE, only=("a", "d"))
    with pytest.raises(ConfigError, match=r"only a: the file has no \[\[variants\]\]; leave this out"):
        load_config(TINY, only=("a",))
