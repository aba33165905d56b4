"""The command, in this process and in one of its own, and a configuration that takes seconds."""

import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedsparse.cli.main import app

CONFIG = """
[run]
name = "small"
seed = 3
rounds = 2

[data]
name = "digits"
clients = 3
min_samples = 5
train_limit = 200
test_limit = 50

[model]
name = "mlp"
hidden = [12]

[method]
name = "static"
density = 0.2
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _one_thread():
    """Results are equal to the bit for equal numbers of threads, and models this small gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path):
    """Writes the small configuration, with further lines, and gives its path."""

    def write(more="", name="small.toml"):
        path = tmp_path / name
        path.write_text(CONFIG + more)
        return str(path)

    return write


@pytest.fixture
def call():
    """Runs the command in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def start():
    """Starts the command in a process group of its own; ended by the test, or after it."""
    processes = []

    def begin(*arguments):
        command = [sys.executable, "-c", "from fedsparse.cli.main import main; main()", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()
