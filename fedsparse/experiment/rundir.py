"""The folder of a run: made at once and whole, never over another, reopened only when unchanged."""

import fcntl
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsparse.errors import CheckpointError, ConfigError
from fedsparse.experiment.config import Config, load_config
from fedsparse.experiment.environment import environment
from fedsparse.experiment.overrides import overlay
from fedsparse.experiment.toml_text import to_toml

__all__ = ["create", "flat", "locked", "read_json", "reopen", "write_json"]

RUNS = Path("runs")
# What may change between start and resume, as no number depends on it: where things lie, what runs the clients and
# when it gives up. Threads and workers may not: the last bits follow from how many threads a client has.
MOVABLE = frozenset(
    {
        "run.out",
        "run.trackers",
        "data.root",
        "engine.kind",
        "engine.timeout_s",
        "engine.min_clients",
        "engine.superlink",
    }
)


def create(config: Config) -> Path:
    """Makes the folder of a new run with `config.toml`, `resolved.json` and `env.json`.

    Another process never sees it half written: it is prepared under another name and then renamed.

    Raises:
        CheckpointError: `run.out` holds something already, or the folder cannot be written.
    """
    parent = Path(config.run.out).parent if config.run.out else RUNS
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{config.run.name}.", dir=parent) as private:
            draft = Path(private) / "draft"
            draft.mkdir()
            _write_start(draft, config)
            return _settle(draft, config)
    except OSError as error:
        raise CheckpointError(
            f"the run folder cannot be written in {parent}: {error}; choose another place with --out"
        ) from error


def reopen(folder: str | Path) -> Config:
    """The configuration of an existing run folder.

    Raises:
        CheckpointError: no run folder, or its `config.toml` no longer says what the run was started with.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a run, for example runs/demo-1")
    started = read_json(folder / "resolved.json")
    config = _current(folder)
    now = _resolved(config)
    for key in sorted(flat(started).keys() | flat(now).keys()):
        was, is_ = flat(started).get(key), flat(now).get(key)
        if was != is_ and key not in MOVABLE:
            raise CheckpointError(
                f"{folder}: config.toml says {key} = {json.dumps(is_)}, but the run was started with "
                f"{json.dumps(was)}; undo the change, or start a new run with `fedsparse run`"
            )
    return config.with_out(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run folder. The lock ends with the process, however it ends.

    Raises:
        CheckpointError: another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: another process is writing to this run; wait for it or stop it first"
            ) from error
        yield


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder.

    Raises:
        CheckpointError: no such file, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: not a run folder, it has no {path.name}; give one that `fedsparse run` made"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or unreadable ({error}); start a new run") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}; start a new run")
    return content


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON object so that a reader finds the old or the new file, never a part."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _write_start(folder: Path, config: Config) -> None:
    given = overlay(config.given, {"run": {"out": None}})
    if config.variants:
        variants = [{"name": v.run.name, **overlay(v.given, {"run": {"out": None}})} for v in config.variants]
        given = overlay(given, {"variants": [_without_naming(v) for v in variants]})
    (folder / "config.toml").write_text(to_toml(given), encoding="utf-8")
    write_json(folder / "resolved.json", _resolved(config))
    write_json(folder / "env.json", environment())


def _without_naming(variant: dict[str, Any]) -> dict[str, Any]:
    """A variant's own table: its run keeps neither name nor folder, which a variant cannot set."""
    run = {key: value for key, value in variant["run"].items() if key not in ("name", "out")}
    return {**variant, "run": run}


def _settle(draft: Path, config: Config) -> Path:
    """Gives the finished draft its name; renaming onto a folder that holds something fails."""
    if config.run.out:
        target = Path(config.run.out)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(
                f"{target}: already there and not empty; choose another --out, or continue it with "
                f"`fedsparse resume {target}`"
            )
        return draft.rename(target)
    for number in itertools.count(_last_number(config.run.name) + 1):
        target = RUNS / f"{config.run.name}-{number}"
        try:
            return draft.rename(target)
        except OSError:
            if not target.exists():
                raise
    raise AssertionError("unreachable: the numbers do not end")


def _last_number(name: str) -> int:
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = [pattern.fullmatch(path.name) for path in RUNS.iterdir()]
    return max((int(match[1]) for match in found if match), default=0)


def _current(folder: Path) -> Config:
    path = folder / "config.toml"
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a run folder, it has no config.toml; give the folder of a run")
    try:
        return load_config(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; the run cannot be resumed before this is repaired") from error


def _resolved(config: Config) -> dict[str, Any]:
    """All settings as JSON gives them back."""
    resolved: dict[str, object] = dict(config.resolved())
    if config.variants:
        resolved["variants"] = {variant.run.name: variant.resolved() for variant in config.variants}
    content: dict[str, Any] = json.loads(json.dumps(resolved))
    return content


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, under dotted keys."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
