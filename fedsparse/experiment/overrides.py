"""Settings laid over a configuration: `key=value` texts, dotted keys, the tables of a variant."""

import tomllib
from collections.abc import Mapping, Sequence

from fedsparse.errors import ConfigError

__all__ = ["Overrides", "dotted", "overlay", "parse_overrides"]

Overrides = Mapping[str, object] | Sequence[str]


def parse_overrides(overrides: Overrides) -> dict[str, object]:
    """Nested tables from dotted keys or from `section.key=value` texts, later ones winning.

    A value in a text is read as TOML; what is not TOML, such as `static`, is taken as text.

    Raises:
        ConfigError: a text without `=`, or a key without a section.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides = {overrides!r}: expected a list of texts, [{overrides!r}], or a mapping")
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split, overrides)
    nested: dict[str, object] = {}
    for key, value in pairs:
        nested = overlay(nested, _nested(key, value))
    return nested


def overlay(base: Mapping[str, object], change: Mapping[str, object]) -> dict[str, object]:
    """`base` with the values of `change`; a table is laid over a table key by key."""
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def dotted(nested: Mapping[str, object]) -> frozenset[str]:
    """The `section.key` names of nested tables."""
    return frozenset(
        f"{section}.{key}" for section, table in nested.items() if isinstance(table, Mapping) for key in table
    )


def _split(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: expected section.key=value, for example method.density=0.1")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _nested(key: str, value: object) -> dict[str, object]:
    section, dot, rest = key.partition(".")
    if not dot and isinstance(value, Mapping):
        return {section: dict(value)}
    if not (section and rest):
        raise ConfigError(
            f"override {key!r}: expected a key with its section, for example method.density or run.rounds"
        )
    return {section: {rest: value}}
