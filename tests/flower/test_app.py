"""The one file of an app, and the command that writes it."""

import tomllib

import pytest
from typer.testing import CliRunner

from fedsparse.cli.flowering import STARTER
from fedsparse.cli.main import app
from fedsparse.errors import ConfigError
from fedsparse.experiment import load_config
from fedsparse.flower.app import AppSettings, write_app


def settings_in(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_file_holds_everything_and_nothing_to_install(tmp_path):
    text = '[run]\nname = "umlaut-\u00fc"\n# "quoted" \\ back\n'
    settings = AppSettings(config=text, nodes=3, server_threads=2)
    write_app(tmp_path / "new" / "app", settings)
    document = settings_in(tmp_path / "new" / "app")
    assert document["project"]["dependencies"] == []
    flower = document["tool"]["flwr"]["app"]
    assert AppSettings.read(flower["config"]) == settings
    assert flower["components"] == {
        "serverapp": "fedsparse.experiment.flower_app:server",
        "clientapp": "fedsparse.experiment.flower_app:client",
    }
    assert all(isinstance(value, str | int) for value in flower["config"].values())


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "pyproject.toml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; give another folder, or remove it"):
        write_app(tmp_path, AppSettings(config=""))
    assert (tmp_path / "pyproject.toml").read_text() == "mine"


def invoked(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_init_writes_an_app_that_starts_from_a_configuration_that_works(tmp_path):
    result = invoked("flower", "init", tmp_path / "app", "--nodes", 2)
    assert result.exit_code == 0, result.output
    config = settings_in(tmp_path / "app")["tool"]["flwr"]["app"]["config"]
    assert (config["config"], config["nodes"]) == (STARTER, 2)
    assert load_config(config["config"]).method.name == "fedtiny"


def test_init_takes_the_text_of_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text("[run]\nrounds = 7\n")
    assert invoked("flower", "init", tmp_path / "app", "--config", tmp_path / "mine.toml").exit_code == 0
    assert settings_in(tmp_path / "app")["tool"]["flwr"]["app"]["config"]["config"] == "[run]\nrounds = 7\n"


@pytest.mark.parametrize("text", ["[run]\nround = 7\n", '[[variants]]\nname = "a"\n'])
def test_init_refuses_what_an_app_cannot_run(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    assert invoked("flower", "init", tmp_path / "app", "--config", tmp_path / "mine.toml").exit_code == 2
    assert not (tmp_path / "app").exists()
