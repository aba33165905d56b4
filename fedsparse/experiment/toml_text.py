"""Writes a configuration as TOML text, which the standard library can only read."""

import json
from collections.abc import Mapping, Sequence

from fedsparse.errors import ConfigError

__all__ = ["to_toml", "value_text"]


def to_toml(document: Mapping[str, object]) -> str:
    """TOML text whose parse equals `document`: tables of scalars, arrays and inline tables; None is left out.

    Raises:
        ConfigError: a value has no TOML form.
    """
    top = [f"{_key(k)} = {value_text(v)}" for k, v in document.items() if not _is_block(v) and v is not None]
    blocks = [line for key, value in document.items() if _is_block(value) for line in _block(key, value)]
    return "\n".join([*top, *blocks]).strip("\n") + "\n"


def value_text(value: object) -> str:
    """TOML text of one value, tables inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    raise ConfigError(
        f"a setting of type {type(value).__name__}, {value!r}, has no TOML form; "
        "use text, numbers, booleans, lists and tables of these"
    )


def _is_block(value: object) -> bool:
    """Whether a top-level value gets a [heading] of its own."""
    return isinstance(value, Mapping) or _is_table_list(value)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _block(key: str, value: object) -> list[str]:
    if isinstance(value, Mapping):
        return ["", f"[{_key(key)}]", *_lines(value)]
    assert isinstance(value, list)
    return [line for item in value for line in ["", f"[[{_key(key)}]]", *_lines(item)]]


def _lines(table: Mapping[str, object]) -> list[str]:
    return [f"{_key(key)} = {value_text(value)}" for key, value in table.items() if value is not None]


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else value_text(key)
