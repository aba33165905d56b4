"""Files on the file they name as `base`."""

import pytest

from fedsparse.errors import ConfigError
from fedsparse.experiment import load_config
from fedsparse.experiment.rundir import create

BASE = """
[data]
clients = 5
[model]
name = "resnet18"
width = 8
[method]
name = "fedtiny"
density = 0.2
adjust_every = 2
[client]
lr = 0.3
epochs = 4
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file below an empty folder, which is the current one, and gives its path."""
    monkeypatch.chdir(tmp_path)

    def file(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return file


def test_a_file_changes_settings_of_its_base(write):
    write("base.toml", BASE)
    config = load_config(write("top.toml", 'base = "base.toml"\n[client]\nlr = 0.1\n[method]\ndensity = 0.4'))
    assert (config.client.lr, config.client.epochs, config.data.clients) == (0.1, 4, 5)
    assert (config.method.name, config.method.density, config.method.adjust_every) == ("fedtiny", 0.4, 2)


def test_another_method_and_model_drop_what_they_do_not_have(write):
    write("base.toml", BASE)
    text = 'base = "base.toml"\n[method]\nname = "static"\n[model]\nname = "mlp"'
    config = load_config(write("top.toml", text))
    assert (config.method.name, config.method.density, config.model.options) == ("static", 0.2, {})


def test_a_base_is_sought_from_the_folder_of_the_file_that_names_it(write):
    write("shared/root.toml", BASE)
    write("shared/middle.toml", 'base = "root.toml"\n[client]\nepochs = 7')
    client = load_config(write("mine/top.toml", 'base = "../shared/middle.toml"\n[client]\nlr = 0.5')).client
    assert (client.epochs, client.lr) == (7, 0.5)
    assert load_config('base = "shared/middle.toml"').client.epochs == 7


def test_variants_of_the_base_stay_unless_the_file_has_its_own(write):
    write("base.toml", BASE + '[[variants]]\nname = "a"\n[[variants]]\nname = "b"\nclient.lr = 0.9')
    kept = load_config(write("kept.toml", 'base = "base.toml"\n[client]\nlr = 0.1'))
    assert {variant.run.name: variant.client.lr for variant in kept.variants} == {"a": 0.1, "b": 0.9}
    own = load_config(write("own.toml", 'base = "base.toml"\n[[variants]]\nname = "c"'))
    assert [variant.run.name for variant in own.variants] == ["c"]


def test_a_run_folder_needs_no_base(write):
    write("base.toml", BASE)
    top = write("top.toml", 'base = "base.toml"\n[client]\nlr = 0.1')
    config = load_config(top)
    folder = create(config)
    assert "base" not in (folder / "config.toml").read_text()
    assert load_config(folder / "config.toml").resolved() == config.resolved()


def test_a_wrong_setting_of_a_base_is_refused_with_both_names(write):
    write("base.toml", "[client]\nlrr = 1")
    with pytest.raises(ConfigError, match=r"top\.toml \(base .*base\.toml\): unknown key client\.lrr; did you mean"):
        load_config(write("top.toml", 'base = "base.toml"'))


def test_a_base_that_leads_back_is_refused(write):
    write("a.toml", 'base = "b.toml"')
    with pytest.raises(ConfigError, match=r"b\.toml: it is its own base"):
        load_config(write("b.toml", 'base = "a.toml"'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('base = "none.toml"', r"none\.toml: no such configuration file"),
        ('base = ["a.toml"]', "expected the path of one TOML file"),
    ],
)
def test_a_base_that_is_no_file_is_refused(write, line, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write("top.toml", line))
