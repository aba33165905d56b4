"""The one file of a Flower app: everything else it needs lies in the installed package."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsparse.errors import ConfigError

__all__ = ["AppSettings", "write_app"]

_HEAD = """\
# A Flower app without code of its own: fedsparse is installed on every host. Run it with `flwr run`.
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []  # Flower would install them afresh for every run

[tool.flwr.app]
publisher = "fedsparse"

[tool.flwr.app.components]
serverapp = "fedsparse.experiment.flower_app:server"
clientapp = "fedsparse.experiment.flower_app:client"

# Each may be changed for one run: flwr run --run-config 'nodes=3'
[tool.flwr.app.config]
"""


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """What a run of the app goes by, all of them scalars.

    Attributes:
        config: path of a fedsparse configuration that every host has there, or the text of one.
        resume: folder of a run to go on with, on the host of the ServerApp; empty for a new run.
        nodes: how many must be there before the first exchange.
        run: folder of a run that a process of this host has begun and looks after; empty where there is none.
        threads: that a client computes with; 0 leaves it to the configuration.
        server_threads: that the server computes with; 0 leaves it to torch.
    """

    config: str
    resume: str = ""
    nodes: int = 1
    run: str = ""
    threads: int = 0
    server_threads: int = 0

    @classmethod
    def read(cls, run_config: Mapping[str, Any]) -> "AppSettings":
        """The settings as Flower hands them to the app."""
        return cls(**{key.replace("-", "_"): value for key, value in run_config.items()})


def write_app(folder: Path, settings: AppSettings) -> Path:
    """Writes `pyproject.toml` into a folder, which is made where it is missing.

    Raises:
        ConfigError: the folder has one, or cannot be written.
    """
    path = folder / "pyproject.toml"
    # JSON texts and numbers are TOML as well.
    values = {key.replace("_", "-"): json.dumps(value, ensure_ascii=False) for key, value in asdict(settings).items()}
    lines = [f"{key} = {value}\n" for key, value in values.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(_HEAD.format(name="fedsparse-app") + "".join(lines))
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already; give another folder, or remove it") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}; give another folder") from error
    return path
