"""Flower's status, and processes that have to go."""

import os
import signal
import subprocess
import sys

import pytest

from fedsparse.errors import ClientError, ConfigError
from fedsparse.flower import superlink
from fedsparse.flower.superlink import RunStatus, SuperLink, command, end, parse_status, quiet, require_flower

LISTED = """Displaying information for run ID 17...
{"success": true, "runs": [{"run-id": "17", "status": "%s", "status-details": "%s"}]}
"""


@pytest.mark.parametrize(
    ("status", "finished", "succeeded"),
    [
        ("pending", False, False),
        ("running", False, False),
        ("finished:completed", True, True),
        ("finished:failed", True, False),
        ("finished:stopped", True, False),
    ],
)
def test_success_is_read_from_the_status(status, finished, succeeded):
    found = parse_status(LISTED % (status, "because"), "17")
    assert (found.finished, found.succeeded, found.details) == (finished, succeeded, "because")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "printed no JSON object but ''"),
        ("Traceback", "printed no JSON object but 'Traceback'"),
        ('{"success": tr', "printed no JSON object"),
        ('{"success": false, "error-message": "no such run"}', "cannot say how run 17 is: no such run"),
        ('{"success": true, "runs": []}', "Flower knows no run 17"),
    ],
)
def test_anything_else_is_an_error(output, message):
    with pytest.raises(ClientError, match=message):
        parse_status(output, "17")


@pytest.fixture
def fake_flwr(tmp_path, monkeypatch):
    """A command `flwr` that prints what the file `answer` says, and exits with the code in `code`."""
    script = tmp_path / "flwr"
    script.write_text(
        f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/asked\ncat {tmp_path}/answer\nexit $(cat {tmp_path}/code)\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_says_nothing(fake_flwr, code):
    (fake_flwr / "code").write_text(str(code))
    (fake_flwr / "answer").write_text(LISTED % ("finished:failed", "it broke"))
    assert SuperLink("loop").status("17") == RunStatus("finished", "failed", "it broke")
    assert (fake_flwr / "asked").read_text() == "ls loop --run-id 17 --format json "


def test_a_run_is_started_with_the_settings_of_its_simulation(fake_flwr):
    (fake_flwr / "code").write_text("0")
    (fake_flwr / "answer").write_text('Started\n{"success": true, "run-id": "42"}')
    app = fake_flwr / "app"
    assert SuperLink("local", federation="num-supernodes=3").submit(app) == "42"
    asked = f"run {app} local --format json --federation-config num-supernodes=3 "
    assert (fake_flwr / "asked").read_text() == asked


def test_a_run_that_is_not_taken_is_an_error(fake_flwr):
    (fake_flwr / "code").write_text("0")
    (fake_flwr / "answer").write_text('{"success": false, "error-message": "no app"}')
    with pytest.raises(ClientError, match="Flower did not start the run: no app"):
        SuperLink("loop").submit(fake_flwr)


def test_what_a_process_started_ends_with_it_even_in_a_session_of_its_own():
    child = (
        "import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True); "
        "print(p.pid, flush=True); p.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.stdout.close()
    os.kill(pid, 0)
    end(process)
    assert process.returncode == -signal.SIGTERM
    assert pid not in superlink._processes()


def test_a_process_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(superlink, "_STOP_SECONDS", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    end(process)
    assert process.returncode == -signal.SIGKILL


def test_flowers_processes_are_quiet_and_find_each_other(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    found = quiet({"FLWR_HOME": "/elsewhere"})
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_HOME"] == "/elsewhere"
    assert found["PATH"].split(os.pathsep)[0] == os.environ["PATH"].split(os.pathsep)[0]


def test_without_flower_the_engine_is_refused(monkeypatch):
    monkeypatch.setattr(superlink, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"flwr is not installed; run `pip install 'fedsparse\[flower\]'`"):
        require_flower()
    with pytest.raises(ConfigError, match="command no-such-command is neither on PATH nor in"):
        command("no-such-command")
