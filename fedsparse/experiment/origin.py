"""Where a setting came from, and the sentence that refuses it."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedsparse.errors import ConfigError
from fedsparse.experiment.toml_text import value_text

__all__ = ["Origin", "nearest", "validated"]

TableT = TypeVar("TableT", bound=BaseModel)


@dataclass(frozen=True)
class Origin:
    """Source of a configuration.

    Attributes:
        file: path of the file, or what to call the text.
        overrides: dotted keys, `method.density`, that were set on top of the file.
        variant: name of the variant whose settings lie on top of the file, or None.
    """

    file: str
    overrides: frozenset[str] = frozenset()
    variant: str | None = None

    def of(self, key: str) -> str:
        """Where the value of a dotted key was given."""
        if any(key == path or key.startswith(path + ".") for path in self.overrides):
            return "override"
        return self.file if self.variant is None else f"{self.file}: variant {self.variant!r}"

    def unknown(self, key: str, known: Iterable[str], *, taker: str) -> ConfigError:
        """Refusal of a dotted key that its table, called `taker` in the message, does not have."""
        table, _, name = key.rpartition(".")
        known = list(known)
        guess = nearest(name, known)
        hint = f"; did you mean {table}.{guess}?" if guess else ";"
        return ConfigError(f"{self.of(key)}: unknown key {key}{hint} {taker} takes {', '.join(known)}")

    def unknown_name(self, key: str, name: str, known: Iterable[str]) -> ConfigError:
        """Refusal of a name that nothing of its kind has."""
        known = list(known)
        guess = nearest(name, known)
        hint = f"; did you mean {guess!r}?" if guess else ";"
        return ConfigError(f"{self.of(key)}: {key} = {_shown(name)} is unknown{hint} known are {', '.join(known)}")

    def wrong(self, key: str, given: object, expected: str) -> ConfigError:
        """Refusal of the value of a dotted key."""
        remedy = f"change it there or pass --set {key}=VALUE"
        return ConfigError(f"{self.of(key)}: {key} = {_shown(given)}: expected {expected}; {remedy}")

    def refused(self, table: str, error: ValidationError, known: Iterable[str], *, taker: str) -> ConfigError:
        """The first complaint of pydantic about a table, in our words."""
        first = error.errors(include_url=False)[0]
        key = ".".join([table, *(str(part) for part in first["loc"][:1])])
        if first["type"] == "extra_forbidden":
            return self.unknown(key, known, taker=taker)
        if first["type"] == "missing":
            return ConfigError(f"{self.of(key)}: {taker} lacks {key}; add it, or pass --set {key}=VALUE")
        return self.wrong(key, first["input"], _expectation(first["msg"]))


def validated(kind: type[TableT], table: str, given: Mapping[str, object], origin: Origin, *, taker: str) -> TableT:
    """A table as its model, or the refusal of what is wrong with it.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range.
    """
    # As JSON, because only there strict checking takes an array for a tuple, the one way TOML can write it.
    try:
        return kind.model_validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        raise origin.refused(table, error, kind.model_fields, taker=taker) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing resembles it."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return matches[0] if matches else None


def _expectation(message: str) -> str:
    """What pydantic wanted, to stand after the word `expected`."""
    return message.replace("Input should be ", "").replace("String should ", "text that should ")


def _shown(value: object) -> str:
    """A value as it would stand in the file."""
    if isinstance(value, str | bool | int | float | list | Mapping):
        return value_text(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(value)
