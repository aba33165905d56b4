"""`fedsparse list` and `fedsparse doctor`, and the help of every command."""

import json

import pytest

from fedsparse.cli import doctor
from fedsparse.errors import BackendError


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("methods", {"fedavg", "static", "fedtiny"}),
        ("models", {"resnet18", "resnet20", "mlp", "lenet", "vgg11"}),
        ("datasets", {"digits", "mnist", "fashion-mnist", "cifar10"}),
        ("backends", {"auto", "cpu", "reference", "masked"}),
        ("engines", {"inline", "process"}),
    ],
)
def test_lists_name_what_a_configuration_may_use(call, kind, some):
    entries = json.loads(call("list", kind, "--json").stdout)
    assert {entry["name"] for entry in entries} >= some
    lines = call("list", kind).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in entries]


def test_methods_come_with_their_settings_and_a_sentence(call):
    entries = {entry["name"]: entry for entry in json.loads(call("list", "methods", "--json").stdout)}
    assert {"density", "adjust_every", "swap_fraction"} <= set(entries["fedtiny"]["settings"])
    assert all(entry["about"] for entry in entries.values())


def test_doctor_reports_this_installation(call):
    result = call("doctor", "--json")
    report = {check["name"]: check for check in json.loads(result.stdout)}
    assert report["python"]["ok"]
    assert report["torch"]["ok"]
    assert report["engines"]["found"].startswith("inline, process, flower; up to ")
    assert report["compiled kernels"]["ok"]
    assert "instruction sets" in report["compiled kernels"]["found"]
    assert {"CUDA kernels", "CUDA device", "triton", "data folder"} <= set(report)
    assert result.exit_code == 0
    assert all(line.startswith(("ok ", "missing ")) for line in call("doctor").stdout.splitlines())


def test_doctor_says_what_to_do_about_what_is_missing(call, monkeypatch):
    def missing():
        raise BackendError("no extension here")

    monkeypatch.setattr(doctor._native, "instruction_sets", missing)
    monkeypatch.setenv("FEDSPARSE_DATA", "/no/such/folder")
    result = call("doctor")
    assert result.exit_code == 1
    lines = {line[9:28].strip(): line for line in result.stdout.splitlines()}
    assert lines["compiled kernels"].startswith("missing  compiled kernels   no extension here; run `pip install")
    assert "/no/such/folder; digits needs no files; for others set FEDSPARSE_DATA" in lines["data folder"]


@pytest.mark.parametrize("command", ["run", "resume", "compare", "list", "doctor", "bench", "report"])
def test_help_shows_an_example(call, command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: fedsparse {command}" in result.stdout


def test_help_of_the_whole_shows_where_to_start(call):
    result = call("--help")
    assert result.exit_code == 0
    assert "fedsparse run recipes/demo.toml" in result.stdout
