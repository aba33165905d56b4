"""Configuration files as nested tables: read, laid on the file they name as `base`, and over one another."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsparse.errors import ConfigError
from fedsparse.experiment.method_settings import shared_settings
from fedsparse.experiment.origin import Origin, nearest
from fedsparse.experiment.overrides import overlay

__all__ = ["TABLES", "Document", "check_tables", "merged", "read_document"]

TABLES = ("run", "data", "model", "method", "client", "engine")
Document = Mapping[str, Any]


def read_document(path_or_text: str | Path) -> tuple[str, dict[str, Any]]:
    """What to call a configuration in messages, and its tables over those of its `base`.

    `base` is the path of another TOML file, seen from the folder of the file that names it; a text is seen from the
    current folder. `[[variants]]` replace those of the base.

    Raises:
        ConfigError: no such file, not TOML, or a file that is its own base.
    """
    if isinstance(path_or_text, str) and ("\n" in path_or_text or "=" in path_or_text):
        return _on_base("configuration text", _parse(path_or_text, "configuration text"), Path(), ())
    return _file(Path(path_or_text), ())


def merged(document: Document, change: Document, origin: Origin) -> dict[str, Any]:
    """`change` over `document`; another model drops the options, another method what it does not have.

    Raises:
        ConfigError: `change` holds something that is no table of a configuration.
    """
    check_tables(change, origin)
    base = dict(document)
    if _renames(base, change, "model"):
        base["model"] = {}
    if _renames(base, change, "method"):
        base["method"] = shared_settings(base["method"], change["method"]["name"], origin)
    return overlay(base, change)


def check_tables(document: Document, origin: Origin) -> None:
    """Raises ConfigError unless `document` consists of the tables of a configuration."""
    for key, value in document.items():
        if key not in TABLES:
            raise _unknown_table(key, origin)
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{origin.of(key)}: {key} = {value!r}: expected a table; write [{key}] and its keys below"
            )


def _file(path: Path, above: tuple[Path, ...]) -> tuple[str, dict[str, Any]]:
    """A file on its base; `above` are the files that have it as their base."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: it is its own base; remove a base key from one of {', '.join(map(str, above))}")
    return _on_base(str(path), _parse(_text(path), str(path)), path.parent, (*above, path.resolve()))


def _on_base(name: str, document: dict[str, Any], folder: Path, above: tuple[Path, ...]) -> tuple[str, dict[str, Any]]:
    base = document.pop("base", None)
    if base is None:
        return name, document
    if not isinstance(base, str):
        raise ConfigError(f"{name}: base = {base!r}: expected the path of one TOML file, seen from this one")
    base_name, below = _file(folder / base, above)
    name = f"{name} (base {base_name})"
    variants = {key: top.pop(key) for top in (below, document) for key in ("variants",) if key in top}
    return name, {**merged(below, document, Origin(name)), **variants}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such configuration file; give the path of a TOML file, for example recipes/demo.toml"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as a UTF-8 text file ({error}); give a TOML file") from error


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}; quote texts and give each key once") from error


def _renames(base: Document, change: Document, table: str) -> bool:
    old, new = base.get(table), change.get(table, {})
    return isinstance(old, Mapping) and "name" in new and new["name"] != old.get("name")


def _unknown_table(key: str, origin: Origin) -> ConfigError:
    guess = nearest(key, [*TABLES, "variants"])
    hint = f"; did you mean [{guess}]?" if guess else ";"
    return ConfigError(f"{origin.of(key)}: unknown table {key}{hint} the tables are {', '.join(TABLES)} and variants")
