"""Runs on Flower, looked after from this process: the rounds themselves are in a ServerApp on this host.

Both work in the run's folder. This process writes a file to ask for a stop, reads the records as they come, and takes
the final weights from the last checkpoint.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fedsparse.errors import CheckpointError, ClientError, FedsparseError
from fedsparse.experiment.config import Config
from fedsparse.experiment.overrides import overlay
from fedsparse.experiment.plan import data_root
from fedsparse.experiment.rundir import read_json, write_json
from fedsparse.experiment.toml_text import to_toml
from fedsparse.federated.checkpoint import Checkpoints
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.loop import Outcome
from fedsparse.federated.plan import Plan
from fedsparse.flower.app import AppSettings, write_app
from fedsparse.flower.superlink import SuperLink, simulation
from fedsparse.nn import write_weights

__all__ = ["STOP", "report_end", "run_on_flower"]

STOP = ".flower-stop"
_END = ".flower-end.json"
_LOOK_SECONDS = 0.2
_STATUS_SECONDS = 5.0  # between two questions about the run; each starts a process
_UNANSWERED = 5  # questions in a row, after which the SuperLink counts as gone
_ERRORS = {kind.__name__: kind for kind in (ClientError, CheckpointError)}


def run_on_flower(
    config: Config,
    plan: Plan,
    folder: Path,
    *,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: Callable[[], bool],
) -> Outcome:
    """The rounds of a run in its folder, from its last checkpoint on, in a simulation or on `engine.superlink`.

    Raises:
        ClientError: too few clients delivered, or Flower's run came to no end; the run can be resumed.
        ConfigError: Flower is not installed.
    """
    for name in (STOP, _END):
        (folder / name).unlink(missing_ok=True)
    tail = _Tail(folder)
    with tempfile.TemporaryDirectory(prefix="fedsparse-flower-") as private:
        place = Path(private)
        app = write_app(place / "app", _settings(config, plan, folder.resolve()))
        with _link(config, place) as link:
            run_id = link.submit(app.parent)
            try:
                _look_after(link, run_id, folder, tail, on_round=on_round, should_stop=should_stop)
            except BaseException:
                if config.engine.superlink is not None:
                    link.stop(run_id)
                raise
    return _outcome(plan, folder)


def report_end(folder: Path, end: Outcome | FedsparseError) -> None:
    """Tells the process that looks after a run how its rounds ended."""
    if isinstance(end, Outcome):
        write_json(folder / _END, {"stopped": end.stopped})
    else:
        write_json(folder / _END, {"error": type(end).__name__, "message": str(end)})


def _settings(config: Config, plan: Plan, folder: Path) -> AppSettings:
    """What the app goes by; its processes work in other folders, so paths are made absolute."""
    paths: dict[str, object] = {"root": str(data_root(config.data).resolve())}
    if config.data.tokenizer != "bytes":
        paths["tokenizer"] = str(Path(config.data.tokenizer).resolve())
    return AppSettings(
        config=to_toml(overlay(config.given, {"data": paths, "run": {"out": str(folder)}})),
        nodes=config.data.clients if config.engine.superlink is None else config.engine.workers,
        run=str(folder),
        threads=plan.threads or torch.get_num_threads(),
        server_threads=torch.get_num_threads(),
    )


def _link(config: Config, place: Path) -> AbstractContextManager[SuperLink]:
    if config.engine.superlink is not None:
        return nullcontext(SuperLink(config.engine.superlink))
    for name in ("home", "neutral"):
        (place / name).mkdir()
    workers = config.engine.workers
    gpus = torch.cuda.device_count() / workers if config.run.device.startswith("cuda") else 0.0
    return simulation(place / "home", clients=config.data.clients, workers=workers, gpus=gpus, cwd=place / "neutral")


def _look_after(
    link: SuperLink,
    run_id: str,
    folder: Path,
    tail: "_Tail",
    *,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: Callable[[], bool],
) -> None:
    """Passes on the records until the run ends; raises what ended it."""
    asked_at, unanswered = time.monotonic(), 0
    while True:
        ended = (folder / _END).exists()
        for record in tail.new():
            on_round(record)
        if should_stop():
            (folder / STOP).touch()
        if ended or time.monotonic() - asked_at >= _STATUS_SECONDS:
            try:
                status, unanswered = link.status(run_id), 0
            except ClientError:  # a SuperLink that is busy does not always answer
                unanswered += 1
                if unanswered == _UNANSWERED:
                    raise
            else:
                if status.finished:
                    break
            asked_at = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    end: dict[str, Any] = read_json(folder / _END) if (folder / _END).exists() else {}
    if "error" in end:
        raise _ERRORS.get(end["error"], FedsparseError)(end["message"])
    if not (status.succeeded and end):
        reason = status.details or link.log(run_id).strip()[-2000:]
        raise ClientError(f"Flower's run {run_id} ended as {status.stage}:{status.outcome}: {reason}")


class _Tail:
    """Records of the rounds that are still to come."""

    def __init__(self, folder: Path) -> None:
        state = Checkpoints(folder / "checkpoints").newest()
        ledger: Any = {} if state is None else state.extras["ledger"]
        Ledger(folder).restore(ledger)  # lines after the checkpoint will be written anew
        self._ledger = folder / "metrics.jsonl"
        self._seen = self._ledger.stat().st_size

    def new(self) -> Iterator[dict[str, Any]]:
        """Those written since the last call; a line that is not whole yet is left for the next."""
        with self._ledger.open("rb") as file:
            file.seek(self._seen)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._seen += len(line)
                yield json.loads(line)


def _outcome(plan: Plan, folder: Path) -> Outcome:
    """What the rounds left in the folder."""
    state = Checkpoints(folder / "checkpoints").newest()
    if state is None or state.weights is None:
        raise CheckpointError(f"{folder}: Flower's run ended without a checkpoint; start it again")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    stopped = bool(read_json(folder / _END)["stopped"])
    for name in (STOP, _END):
        (folder / name).unlink(missing_ok=True)
    model = plan.network()
    write_weights(model, state.weights)
    return Outcome(model, state.weights, [json.loads(line) for line in lines], stopped)
