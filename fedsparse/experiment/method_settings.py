"""Settings of a method, checked through the class that declares them."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from fedsparse.errors import ConfigError, PatternError
from fedsparse.experiment.origin import Origin, validated
from fedsparse.methods.base import Method, find

__all__ = ["checked_method", "fitting", "settings_of", "shared_settings"]

DEFAULT_METHOD = "fedavg"


def checked_method(given: Mapping[str, object], origin: Origin) -> Method:
    """The method named in [method]; types of its settings are checked here, ranges in the method itself."""
    name = given.get("name", DEFAULT_METHOD)
    method = _find(name, origin)
    settings = {key: value for key, value in given.items() if key != "name"}
    known = validated(_settings_model(method), "method", settings, origin, taker=f"method {name}")
    try:
        return method(**{key: getattr(known, key) for key in settings})
    except (ConfigError, PatternError) as error:
        raise ConfigError(f"{origin.of('method')}: [method] {error}") from error


def shared_settings(settings: Mapping[str, object], new_name: object, origin: Origin) -> dict[str, object]:
    """Settings that the new method has too. Those that the old one lacks stay, to be refused as unknown."""
    old = _setting_names(_find(settings.get("name", DEFAULT_METHOD), origin))
    new = _setting_names(_find(new_name, origin))
    return {key: value for key, value in settings.items() if key in new or key not in old}


def settings_of(documents: Iterable[Mapping[str, Any]], origin: Origin) -> frozenset[str]:
    """Names of the settings that any method of these configurations has."""
    return frozenset(name for document in documents for name in _setting_names(_chosen(document, {}, origin)))


def fitting(
    changes: Mapping[str, Any], document: Mapping[str, Any], elsewhere: frozenset[str], origin: Origin
) -> dict[str, Any]:
    """Overrides without those method settings that only other variants (`elsewhere`) have a use for."""
    table = changes.get("method")
    if not isinstance(table, Mapping):
        return dict(changes)
    mine = _setting_names(_chosen(document, table, origin))
    kept = {key: value for key, value in table.items() if key in mine or key not in elsewhere}
    return {**changes, "method": kept}


def _chosen(document: Mapping[str, Any], table: Mapping[str, Any], origin: Origin) -> type[Method]:
    """The class named by `table`, else by the document."""
    given = document.get("method")
    name = given.get("name", DEFAULT_METHOD) if isinstance(given, Mapping) else DEFAULT_METHOD
    return _find(table.get("name", name), origin)


def _find(name: object, origin: Origin) -> type[Method]:
    """The class of a method."""
    if not isinstance(name, str):
        raise origin.wrong("method.name", name, "the name of a method; `fedsparse list methods` shows them")
    try:
        return find(name)
    except ConfigError as error:
        raise ConfigError(f"{origin.of('method.name')}: method.name: {error}") from error


def _settings_model(method: type[Method]) -> type[BaseModel]:
    """The settings of a method's class as a pydantic model."""
    hints = get_type_hints(method, include_extras=True)
    settings: dict[str, Any] = {field.name: (hints[field.name], _default(field)) for field in fields(method)}
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model(method.__name__, __config__=strict, **settings)


def _default(field: Field[Any]) -> object:
    if field.default is not MISSING:
        return field.default
    return ... if field.default_factory is MISSING else field.default_factory()


def _setting_names(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method)}
