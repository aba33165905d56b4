"""`fedsparse flower`: apps for Flower."""

from pathlib import Path
from typing import Annotated

import typer

from fedsparse.errors import ConfigError
from fedsparse.experiment import load_config
from fedsparse.flower.app import AppSettings, write_app

__all__ = ["EXAMPLE", "app"]

EXAMPLE = "Example: fedsparse flower init my-app --config my.toml --nodes 2"
STARTER = """\
[run]
rounds = 5

[data]
name = "digits"
image_size = 16
clients = 4

[model]
name = "lenet"

[method]
name = "fedtiny"
density = 0.2
"""

app = typer.Typer(help="Run configurations as a Flower app, over a network.", epilog=EXAMPLE, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `init` a command of its own while it is the only one."""


@app.command("init", epilog=EXAMPLE)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the app; made where it is missing.")],
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="TOML file whose text becomes part of the app.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes that must be there before the first round.")] = 1,
) -> None:
    """Write the one file that a Flower app needs, DIR/pyproject.toml."""
    text = STARTER if config is None else _read(config)
    if load_config(text).variants:
        raise ConfigError(f"{config}: has variants, of which a Flower app runs one; write a file without [[variants]]")
    path = write_app(folder, AppSettings(config=text, nodes=nodes))
    print(f"written to {path}; next: flwr run {folder} SUPERLINK --stream")


def _read(path: Path) -> str:
    load_config(path)  # says what is wrong with it by its name
    return path.read_text(encoding="utf-8")
