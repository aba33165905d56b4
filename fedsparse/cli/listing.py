"""`fedsparse list`: the names a configuration may use."""

import inspect
import json
from dataclasses import fields
from enum import StrEnum
from typing import Annotated

import typer

from fedsparse import backends, data, models
from fedsparse.experiment.engine import engines
from fedsparse.methods import base as methods

__all__ = ["EXAMPLE", "Kind", "show"]

EXAMPLE = "Example: fedsparse list methods"


class Kind(StrEnum):
    """What can be listed."""

    methods = "methods"
    models = "models"
    datasets = "datasets"
    backends = "backends"
    engines = "engines"


def show(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the methods, models, data sets, backends or engines that a configuration may name."""
    entries = LISTS[kind]()
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    width = max(len(str(entry["name"])) for entry in entries)
    for entry in entries:
        print(f"{entry['name']:{width}}  {entry.get('about', '')}".rstrip())


def _methods() -> list[dict[str, object]]:
    return [_method(methods.find(name)) for name in methods.methods()]


def _method(method: type[methods.Method]) -> dict[str, object]:
    return {
        "name": method.name,
        "about": _first_line(method) or _first_line(inspect.getmodule(method)),
        "settings": {field.name: field.default for field in fields(method)},
    }


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _models() -> list[dict[str, object]]:
    return [{"name": name, "about": _first_line(getattr(models, name))} for name in models.models()]


def _datasets() -> list[dict[str, object]]:
    return [{"name": name} for name in data.datasets()]


def _backends() -> list[dict[str, object]]:
    return [{"name": name} for name in backends.names()]


def _engines() -> list[dict[str, object]]:
    return [{"name": name, "about": about} for name, about in engines().items()]


LISTS = {
    Kind.methods: _methods,
    Kind.models: _models,
    Kind.datasets: _datasets,
    Kind.backends: _backends,
    Kind.engines: _engines,
}
