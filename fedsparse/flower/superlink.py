"""Flower's command line: a SuperLink of our own for a simulation, runs, and what became of them.

Whether a run succeeded is read from its status as JSON: `flwr` exits 0 for a failed one too.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsparse.errors import ClientError, ConfigError

__all__ = [
    "RunStatus",
    "SuperLink",
    "command",
    "end",
    "free_port",
    "parse_status",
    "quiet",
    "require_flower",
    "simulation",
]

_COMMAND_SECONDS = 120.0
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class RunStatus:
    """What Flower says of a run.

    Attributes:
        stage: `pending`, `starting`, `running` or `finished`.
        outcome: of a finished one, `completed`, `failed` or `stopped`.
        details: a sentence about it, where Flower has one.
    """

    stage: str
    outcome: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.stage == "finished"

    @property
    def succeeded(self) -> bool:
        """Whether the app ran to its end."""
        return self.finished and self.outcome == "completed"


def parse_status(output: str, run_id: str) -> RunStatus:
    """The status of a run in what `flwr ls --format json` printed.

    Raises:
        ClientError: there is no JSON in it, Flower reports an error, or does not know the run.
    """
    listed = _object(output)
    if not listed.get("success"):
        raise ClientError(f"Flower cannot say how run {run_id} is: {listed.get('error-message', output.strip())}")
    for run in listed.get("runs", []):
        if str(run.get("run-id")) == run_id:
            stage, _, outcome = str(run.get("status", "")).partition(":")
            return RunStatus(stage, outcome, str(run.get("status-details") or ""))
    raise ClientError(f"Flower knows no run {run_id}")


def _object(output: str) -> dict[str, Any]:
    """The JSON object in an output, whatever lines of text stand before it."""
    start = output.find("{")
    try:
        content = json.JSONDecoder().raw_decode(output, start)[0] if start >= 0 else None
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise ClientError(f"Flower printed no JSON object but {output.strip()[-500:]!r}")
    return content


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that takes runs.

    Attributes:
        name: of its connection in Flower's configuration.
        environment: of the commands.
        federation: settings of the simulation, as `--federation-config` takes them; empty in a deployment.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    federation: str = ""

    def submit(self, app: Path) -> str:
        """Starts the app in a folder; the id of its run.

        Raises:
            ClientError: Flower does not take it.
        """
        simulated = ["--federation-config", self.federation] if self.federation else []
        output = self._flwr("run", str(app.resolve()), self.name, "--format", "json", *simulated)
        started = _object(output)
        if not started.get("run-id"):
            raise ClientError(f"Flower did not start the run: {started.get('error-message', output.strip())}")
        return str(started["run-id"])

    def status(self, run_id: str) -> RunStatus:
        """How a run is.

        Raises:
            ClientError: Flower does not answer.
        """
        return parse_status(self._flwr("ls", self.name, "--run-id", run_id, "--format", "json"), run_id)

    def stop(self, run_id: str) -> None:
        """Stops a run."""
        self._flwr("stop", run_id, self.name, "--format", "json")

    def log(self, run_id: str) -> str:
        """What the ServerApp of a run printed."""
        return self._flwr("log", run_id, self.name, "--show")

    def _flwr(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [command("flwr"), *arguments],
                env=quiet(self.environment),
                capture_output=True,
                text=True,
                timeout=_COMMAND_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise ClientError(
                f"`flwr {arguments[0]}` did not answer within {_COMMAND_SECONDS:g} s; is the SuperLink there?"
            ) from error
        return done.stdout or done.stderr


@contextmanager
def simulation(home: Path, *, clients: int, workers: int, gpus: float, cwd: Path) -> Iterator[SuperLink]:
    """A SuperLink of our own that simulates `clients` nodes, stopped with everything it started at the end.

    It works in a folder where nothing lies: Flower looks for an app's modules first where its SuperLink was started.

    Args:
        home: an empty folder for Flower's files.
        clients: nodes.
        workers: processes that share them.
        gpus: share of a GPU that each may use.
        cwd: that neutral folder.

    Raises:
        ClientError: it does not start.
    """
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    environment = {"FLWR_HOME": str(home)}
    log = home / "superlink.log"
    arguments = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command("flower-superlink"), *arguments],
            env=quiet(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the process that looks after the run
        )
    try:
        _await_health(process, f"http://127.0.0.1:{port}/health", log)
        settings = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus={workers}"
        settings += f" client-resources-num-gpus={gpus}" if gpus else ""
        yield SuperLink("local", environment, settings)
    finally:
        end(process)


def _await_health(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    last = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
    raise ClientError(f"Flower's SuperLink did not start within {_START_SECONDS:g} s; it says: {last}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it has started, by request first.

    Flower starts helpers in sessions of their own, and Ray starts more, so they are found by who started whom.
    """
    family = [process.pid, *_descendants(process.pid)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            process.poll()  # collects it
            running = _processes()
            family = [pid for pid in family if pid in running]
            if not family:
                process.wait()
                return
            time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    parents, found = _processes(), [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def _processes() -> dict[int, int]:
    """Parent of each process that runs on this host."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True, timeout=_COMMAND_SECONDS
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid): int(parent) for pid, parent, state, *_ in rows if not state.startswith("Z")}


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_flower() -> None:
    """Refuses to go on without Flower.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("flwr") is None:
        raise ConfigError(
            "engine.kind = \"flower\": the package flwr is not installed; run `pip install 'fedsparse[flower]'`, or "
            "use --engine process"
        )


def command(name: str) -> str:
    """Full path of one of Flower's commands, looked for on PATH, then beside this interpreter.

    Raises:
        ConfigError: it is nowhere.
    """
    beside = sysconfig.get_path("scripts")
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        raise ConfigError(
            f"Flower's command {name} is neither on PATH nor in {beside}; run `pip install 'fedsparse[flower]'`"
        )
    return found


def quiet(changed: Mapping[str, str]) -> dict[str, str]:
    """The environment of Flower's processes: without telemetry, update checks and installing, and with its commands.

    Its processes start each other by name, so their folder is on the path.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    return {**os.environ, **_QUIET, "PATH": path, **changed}
