"""A configuration file, read and checked: one run, or several variants of one to be compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from fedsparse.data import datasets
from fedsparse.errors import ConfigError
from fedsparse.experiment.document import TABLES, Document, check_tables, merged, read_document
from fedsparse.experiment.engine import engines
from fedsparse.experiment.grid import Grid, Point, Seeds, grid_points, point_name
from fedsparse.experiment.method_settings import checked_method, fitting, settings_of
from fedsparse.experiment.origin import Origin, validated
from fedsparse.experiment.overrides import Overrides, dotted, overlay, parse_overrides
from fedsparse.experiment.settings import ClientTable, DataTable, EngineTable, ModelTable, RunTable
from fedsparse.experiment.trackers import trackers
from fedsparse.methods.base import Method
from fedsparse.models import models

__all__ = ["Config", "load_config"]

TableT = TypeVar("TableT", bound=BaseModel)
Draft = tuple[Origin, Document]


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


def load_config(
    path_or_text: str | Path,
    overrides: Overrides = (),
    *,
    grid: Grid = (),
    seeds: Seeds = (),
    only: Sequence[str] = (),
) -> Config:
    """Reads a configuration from a TOML file, or from TOML text.

    Args:
        path_or_text: a path; a string with a line break or an `=` is taken as TOML text.
        overrides: settings laid over the file: `{"method.density": 0.05}` or `["method.density=0.05"]`.
            They hold for every variant, those of a method for the variants whose method has them. Naming
            another method keeps the settings that both methods have.
        grid: values to combine, `{"method.density": [0.2, 0.1]}` or `["method.density=0.2,0.1"]`: the configuration,
            or each of its variants, becomes a variant for every combination, without those settings that its method
            does not have.
        seeds: values of `run.seed` to combine with all that, numbers or a text such as `"0-2"`.
        only: names of the file's variants to keep; all by default.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a value of the wrong type or out of range, or no such
            variant.
    """
    file, document = read_document(path_or_text)
    variants = document.pop("variants", [])
    changes = parse_overrides(overrides)
    if "variants" in changes:
        raise ConfigError("override variants: variants are set in the file alone; edit its [[variants]] tables")
    points = [(point, parse_overrides(point)) for point in grid_points(grid, seeds)]
    origin = Origin(file, dotted(changes).union(*(point for point, _ in points)))
    named = list(_drafts(document, variants, origin))
    every = [document, *(draft for _, draft in named)]
    elsewhere = settings_of([*every, *(overlay(draft, at) for draft in every for _, at in points)], origin)
    drafts = [(origin, document), *_chosen(named, only, origin)]
    base, *others = [_overridden(draft, changes, elsewhere, where) for where, draft in drafts]
    if points:
        spread = drafts[1:] or [(replace(origin, variant=base.run.name), document)]
        others = [config for where, draft in spread for config in _spread(draft, changes, points, elsewhere, where)]
    return replace(base, variants=tuple(others))


def _chosen(drafts: Sequence[Draft], only: Sequence[str], origin: Origin) -> list[Draft]:
    """The variants of these names, in the order of the file; all where no name is given."""
    names = [str(where.variant) for where, _ in drafts]
    if only and not names:
        raise ConfigError(f"{origin.file}: only {', '.join(only)}: the file has no [[variants]]; leave this out")
    for name in only:
        _check_name("only", name, names, origin)
    return [(where, draft) for where, draft in drafts if not only or where.variant in only]


def _spread(
    draft: Document,
    changes: Document,
    points: Sequence[tuple[Point, Document]],
    elsewhere: frozenset[str],
    origin: Origin,
) -> list[Config]:
    """The configurations of a draft at the points; those that differ only in what its method lacks are one.

    Raises:
        ConfigError: besides what is wrong with a setting, two values have the same name.
    """
    found: dict[str, tuple[Document, Config]] = {}
    for point, at in points:
        given = fitting(overlay(changes, at), draft, elsewhere, origin)
        mine = {key: value for key, value in point.items() if key in dotted(given)}
        name = point_name(origin.variant or "", mine, point)
        if name in found and found[name][0] != given:
            raise ConfigError(f"grid: {mine} is called {name} as another point is; change one of the values")
        if name not in found:
            found[name] = given, _overridden(draft, given, elsewhere, replace(origin, variant=name))
    return [config for _, config in found.values()]


def _overridden(draft: Document, changes: Document, elsewhere: frozenset[str], origin: Origin) -> Config:
    """The configuration of a draft under the overrides that fit its method."""
    document = merged(draft, fitting(changes, draft, elsewhere, origin), origin)
    if origin.variant is not None:
        document = overlay(document, {"run": {"name": origin.variant}})
    return _resolve(document, origin)


def _drafts(document: Document, variants: object, origin: Origin) -> Iterator[tuple[Origin, Document]]:
    """The settings of each variant over those of the file."""
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
        yield _draft(document, item, replace(origin, variant=name))


def _draft(document: Document, item: Document, origin: Origin) -> tuple[Origin, Document]:
    settings = {key: value for key, value in item.items() if key != "name"}
    for key in sorted({"run.name", "run.out"} & dotted(settings)):
        raise ConfigError(
            f"{origin.of(key)}: {key} cannot be set in a variant; its name and the common folder are used"
        )
    return origin, merged(document, settings, origin)


def _resolve(document: Document, origin: Origin) -> Config:
    check_tables(document, origin)
    config = Config(
        run=_table(RunTable, "run", document, origin),
        data=_table(DataTable, "data", document, origin),
        model=_table(ModelTable, "model", document, origin),
        method=checked_method(document.get("method", {}), origin),
        client=_table(ClientTable, "client", document, origin),
        engine=_table(EngineTable, "engine", document, origin),
        given=document,
    )
    _check_name("data.name", config.data.name, datasets(), origin)
    _check_name("model.name", config.model.name, models(), origin)
    _check_name("engine.kind", config.engine.kind, list(engines()), origin)
    for tracker in config.run.trackers:
        _check_name("run.trackers", tracker, trackers(), origin)
    _check_cohort(config, origin)
    _check_cohort_batch(config.engine, origin)
    return config


def _table(kind: type[TableT], name: str, document: Document, origin: Origin) -> TableT:
    return validated(kind, name, document.get(name, {}), origin, taker=f"[{name}]")


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


def _check_cohort_batch(engine: EngineTable, origin: Origin) -> None:
    if engine.cohort_batch > 1 and engine.kind != "inline":
        expected = f'1 with engine.kind = "{engine.kind}"; only "inline" serves several clients at a time'
        raise origin.wrong("engine.cohort_batch", engine.cohort_batch, expected)
