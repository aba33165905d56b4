"""Run folders: whole from the first moment, never over another, reopened only when unchanged."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedsparse.errors import CheckpointError
from fedsparse.experiment import load_config
from fedsparse.experiment.rundir import create, locked, reopen, write_json

TEXT = '[run]\nname = "demo"\nrounds = 4\n'
VARIANTS = f"""{TEXT}
[method]
name = "fedtiny"

[[variants]]
name = "a"
method.name = "static"

[[variants]]
name = "b"
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_folders_are_numbered_and_hold_the_settings():
    config = load_config(TEXT, ["client.lr=0.25"])
    assert [str(create(config)) for _ in range(3)] == ["runs/demo-1", "runs/demo-2", "runs/demo-3"]
    assert names("runs") == ["demo-1", "demo-2", "demo-3"]
    assert names("runs/demo-1") == ["config.toml", "env.json", "resolved.json"]
    assert load_config(Path("runs/demo-1/config.toml")) == config
    assert json.loads(Path("runs/demo-1/resolved.json").read_text()) == config.resolved()
    assert {"python", "torch", "numpy", "processor", "threads", "platform"} <= set(
        json.loads(Path("runs/demo-1/env.json").read_text())
    )


def test_a_number_that_was_used_is_not_used_again():
    config = load_config(TEXT)
    create(config)
    Path("runs/demo-7").mkdir()
    Path("runs/demo-7/note").touch()
    assert str(create(config)) == "runs/demo-8"


def test_runs_begun_at_the_same_time_get_folders_of_their_own():
    config = load_config(TEXT)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: str(create(config)), range(16)))
    assert sorted(folders) == sorted(f"runs/demo-{n}" for n in range(1, 17))
    assert all(names(folder) == ["config.toml", "env.json", "resolved.json"] for folder in folders)
    assert len(names("runs")) == 16


def test_a_chosen_folder_may_exist_while_it_is_empty():
    Path("mine").mkdir()
    assert create(load_config(TEXT, ["run.out=mine"])) == Path("mine")
    assert create(load_config(TEXT, ["run.out=deep/er"])) == Path("deep/er")


def test_a_chosen_folder_with_content_is_left_alone():
    config = load_config(TEXT, ["run.out=mine"])
    create(config)
    Path("mine/config.toml").write_text("kept")
    with pytest.raises(CheckpointError) as caught:
        create(config)
    assert str(caught.value) == (
        "mine: already there and not empty; choose another --out, or continue it with `fedsparse resume mine`"
    )
    assert Path("mine/config.toml").read_text() == "kept"


def test_a_place_that_cannot_be_written_is_named():
    Path("file").touch()
    with pytest.raises(CheckpointError, match="the run folder cannot be written in file: "):
        create(load_config(TEXT, ["run.out=file/run"]))


@pytest.mark.parametrize("text", [TEXT, VARIANTS])
def test_reopening_gives_the_same_settings(text):
    config = load_config(text, {"client.lr": 0.3})
    again = reopen(create(config))
    assert again.run.out == "runs/demo-1"
    assert [v.resolved() for v in again.variants] == [v.resolved() for v in config.variants]
    assert again.method == config.method


def test_the_place_of_the_run_may_change_between_start_and_resume():
    folder = create(load_config(TEXT)).rename("elsewhere")
    assert reopen(folder).run.out == "elsewhere"


def test_changed_settings_are_refused_by_name():
    folder = create(load_config(TEXT))
    (folder / "config.toml").write_text(TEXT.replace("4", "5"))
    with pytest.raises(CheckpointError) as caught:
        reopen(folder)
    assert str(caught.value) == (
        "runs/demo-1: config.toml says run.rounds = 5, but the run was started with 4; "
        "undo the change, or start a new run with `fedsparse run`"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "gone: no such folder; give the folder of a run, for example runs/demo-1"),
        ({}, "gone: not a run folder, it has no resolved.json; give one that `fedsparse run` made"),
        ({"resolved.json": "{}"}, "gone: not a run folder, it has no config.toml; give the folder of a run"),
        ({"resolved.json": '{"a"'}, "gone/resolved.json: damaged or unreadable"),
        ({"resolved.json": "{}", "config.toml": "[run"}, "gone/config.toml: not valid TOML"),
    ],
)
def test_what_is_no_run_folder_is_refused(content, message):
    if content is not None:
        Path("gone").mkdir()
        for name, text in content.items():
            Path("gone", name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        reopen("gone")
    assert str(caught.value).startswith(message)


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(CheckpointError, match="another process is writing to this run"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
