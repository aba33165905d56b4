"""A configuration file, read and checked: one run, or several variants of one to be compared."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fedsparse.data import datasets
from fedsparse.errors import ConfigError
from fedsparse.experiment.origin import Origin, nearest
from fedsparse.experiment.overrides import Overrides, dotted, overlay, parse_overrides
from fedsparse.experiment.settings import ClientTable, DataTable, EngineTable, ModelTable, RunTable
from fedsparse.methods.base import Method, find
from fedsparse.models import models

__all__ = ["Config", "load_config"]

TABLES = ("run", "data", "model", "method", "client", "engine")
DEFAULT_METHOD = "fedavg"
Document = Mapping[str, Any]
TableT = TypeVar("TableT", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Checked settings of one run, and of its variants where the file has any.

    Attributes:
        run, data, model, client, engine: the tables of that name.
        method: the method with its settings.
        given: what the file, the variant and the overrides set; the rest are defaults.
        variants: one configuration each; empty for a single run.
    """

    run: RunTable
    data: DataTable
    model: ModelTable
    method: Method
    client: ClientTable
    engine: EngineTable
    given: Document
    variants: tuple["Config", ...] = ()

    def resolved(self) -> dict[str, dict[str, object]]:
        """Every setting with its value, defaults included, ready for JSON."""
        method = {"name": self.method.name, **asdict(self.method)}
        sections = {name: getattr(self, name).model_dump(mode="json") for name in TABLES if name != "method"}
        return {name: method if name == "method" else sections[name] for name in TABLES}

    def with_out(self, folder: Path) -> "Config":
        """The same configuration, to be written to `folder`."""
        given = overlay(self.given, {"run": {"out": str(folder)}})
        return replace(self, run=self.run.model_copy(update={"out": str(folder)}), given=given)


def load_config(path_or_text: str | Path, overrides: Overrides = ()) -> Config:
    """Reads a configuration from a TOML file, or from TOML text.

    Args:
        path_or_text: a path; a string with a line break or an `=` is taken as TOML text.
        overrides: settings laid over the file: `{"method.density": 0.05}` or `["method.density=0.05"]`.
            They hold for every variant. Naming another method keeps the settings both methods have.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of the wrong type or out of range.
    """
    file, text = _read(path_or_text)
    document = _parse(text, file)
    variants = document.pop("variants", [])
    changes = parse_overrides(overrides)
    if "variants" in changes:
        raise ConfigError(
            "override variants: variants are set in the file alone; edit its [[variants]] tables"
        )
    origin = Origin(file, dotted(changes))
    config = _resolve(_merged(document, changes, origin), origin)
    return replace(config, variants=tuple(_variants(document, variants, changes, origin)), given=config.given)


def _read(path_or_text: str | Path) -> tuple[str, str]:
    if isinstance(path_or_text, str) and ("\n" in path_or_text or "=" in path_or_text):
        return "configuration text", path_or_text
    path = Path(path_or_text)
    try:
        return str(path), path.read_text(encoding="utf-8")
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


def _variants(document: Document, variants: object, changes: Document, origin: Origin) -> Iterator[Config]:
    """The configuration of each variant: file, then variant, then overrides."""
    if not (isinstance(variants, list) and all(isinstance(item, Mapping) for item in variants)):
        raise ConfigError(f"{origin.file}: variants: expected [[variants]] tables, each with a name")
    seen: set[str] = set()
    for number, item in enumerate(variants, start=1):
        name = item.get("name")
        if not isinstance(name, str) or name in seen:
            raise ConfigError(
                f"{origin.file}: variant {number} has name {name!r}: expected text that no other variant has"
            )
        seen.add(name)
        yield _variant(document, item, changes, replace(origin, variant=name))


def _variant(document: Document, item: Document, changes: Document, origin: Origin) -> Config:
    settings = {key: value for key, value in item.items() if key != "name"}
    for key in sorted({"run.name", "run.out"} & dotted(settings)):
        raise ConfigError(
            f"{origin.of(key)}: {key} cannot be set in a variant; its name and the common folder are used"
        )
    naming = {"run": {"name": origin.variant}}
    merged = _merged(_merged(document, settings, origin), changes, origin)
    return _resolve(overlay(merged, naming), origin)


def _merged(document: Document, change: Document, origin: Origin) -> Document:
    """`change` over `document`; another model drops the options, another method what it does not have."""
    for key, table in change.items():
        if not isinstance(table, Mapping):
            raise _unknown_table(key, origin) if key not in TABLES else _not_a_table(key, table, origin)
    base = dict(document)
    if _renames(base, change, "model"):
        base["model"] = {}
    if _renames(base, change, "method"):
        base["method"] = _shared_settings(base["method"], change["method"]["name"], origin)
    return overlay(base, change)


def _renames(base: Document, change: Document, table: str) -> bool:
    old, new = base.get(table), change.get(table, {})
    return isinstance(old, Mapping) and "name" in new and new["name"] != old.get("name")


def _shared_settings(settings: Document, new_name: object, origin: Origin) -> dict[str, object]:
    """Settings that the new method has too. Those that the old one lacks stay, to be refused as unknown."""
    old = _setting_names(_find(settings.get("name", DEFAULT_METHOD), origin))
    new = _setting_names(_find(new_name, origin))
    return {key: value for key, value in settings.items() if key in new or key not in old}


def _setting_names(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method)}


def _resolve(document: Document, origin: Origin) -> Config:
    for key, value in document.items():
        if key not in TABLES:
            raise _unknown_table(key, origin)
        if not isinstance(value, Mapping):
            raise _not_a_table(key, value, origin)
    config = Config(
        run=_table(RunTable, "run", document, origin),
        data=_table(DataTable, "data", document, origin),
        model=_table(ModelTable, "model", document, origin),
        method=_method(document.get("method", {}), origin),
        client=_table(ClientTable, "client", document, origin),
        engine=_table(EngineTable, "engine", document, origin),
        given=document,
    )
    _check_name("data.name", config.data.name, datasets(), origin)
    _check_name("model.name", config.model.name, models(), origin)
    _check_cohort(config, origin)
    return config


def _unknown_table(key: str, origin: Origin) -> ConfigError:
    guess = nearest(key, [*TABLES, "variants"])
    hint = f"; did you mean [{guess}]?" if guess else ";"
    return ConfigError(
        f"{origin.of(key)}: unknown table {key}{hint} the tables are {', '.join(TABLES)} and variants"
    )


def _not_a_table(key: str, value: object, origin: Origin) -> ConfigError:
    return ConfigError(
        f"{origin.of(key)}: {key} = {value!r}: expected a table; write [{key}] and its keys below"
    )


def _table(kind: type[TableT], name: str, document: Document, origin: Origin) -> TableT:
    return _validated(kind, name, document.get(name, {}), origin, taker=f"[{name}]")


def _validated(kind: type[TableT], table: str, given: Document, origin: Origin, *, taker: str) -> TableT:
    # As JSON, because only there strict checking takes an array for a tuple, the one way TOML can write it.
    try:
        return kind.model_validate_json(json.dumps(given, default=str))
    except ValidationError as error:
        raise origin.refused(table, error, kind.model_fields, taker=taker) from error


def _method(given: Document, origin: Origin) -> Method:
    """The method named in [method]; types of its settings are checked here, ranges in the method itself."""
    name = given.get("name", DEFAULT_METHOD)
    method = _find(name, origin)
    settings = {key: value for key, value in given.items() if key != "name"}
    known = _validated(_settings_model(method), "method", settings, origin, taker=f"method {name}")
    try:
        return method(**{key: getattr(known, key) for key in settings})
    except ConfigError as error:
        raise ConfigError(f"{origin.of('method')}: [method] {error}") from error


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


def _check_name(key: str, name: str, known: Sequence[str], origin: Origin) -> None:
    if name not in known:
        raise origin.unknown_name(key, name, known)


def _check_cohort(config: Config, origin: Origin) -> None:
    clients, cohort = config.data.clients, config.client.per_round or config.data.clients
    if cohort > clients:
        raise origin.wrong("client.per_round", cohort, f"at most data.clients = {clients}")
    if config.engine.min_clients > cohort:
        expected = f"at most {cohort}, the clients of a round"
        raise origin.wrong("engine.min_clients", config.engine.min_clients, expected)
