"""Many runs of one configuration: every combination of some settings' values, each with several seeds."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from fedsparse.errors import ConfigError
from fedsparse.experiment.overrides import parse_overrides
from fedsparse.experiment.toml_text import value_text

__all__ = ["Grid", "Point", "Seeds", "grid_points", "point_name"]

Grid = Mapping[str, Sequence[object]] | Sequence[str]
Seeds = str | Iterable[int]
Point = Mapping[str, object]  # dotted key -> value
SEED = "run.seed"
NAMING = frozenset({"run.name", "run.out"})


def grid_points(grid: Grid, seeds: Seeds) -> list[Point]:
    """Every combination of the values, the last key and then the seed changing fastest; none for no grid and no seeds.

    Args:
        grid: values of each dotted key, or texts such as `method.density=0.2,0.1`, whose values are read as TOML
            and else as text.
        seeds: numbers, or a text such as `0-2,7`.

    Raises:
        ConfigError: a text that says something else, a key given twice, or one that names runs.
    """
    axes = _axes(grid)
    numbers = _seeds(seeds) if isinstance(seeds, str) else list(seeds)
    if numbers and SEED in axes:
        raise ConfigError(f"grid {SEED}: the seeds are given already, as {numbers}; expected one of the two")
    if numbers:
        axes[SEED] = numbers
    if not axes:
        return []
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def point_name(base: str, point: Point, keys: Iterable[str]) -> str:
    """What a run at a point is called: `base_density-0.1_seed-2`; a key is shortened while it stays apart from `keys`.

    Letters, digits and points of a value stand as they are, everything else becomes a hyphen.
    """
    last = [key.rpartition(".")[2] for key in keys]
    parts = [base]
    for key, value in point.items():
        short = key.rpartition(".")[2]
        text = value if isinstance(value, str) else value_text(value)
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
        parts.append(f"{short if last.count(short) == 1 else key}-{plain}")
    return "_".join(parts)


def _axes(grid: Grid) -> dict[str, Sequence[object]]:
    pairs = list(grid.items()) if isinstance(grid, Mapping) else [_axis(text) for text in grid]
    axes: dict[str, Sequence[object]] = {}
    for key, values in pairs:
        if key in axes or key in NAMING:
            why = "is given twice" if key in axes else "names runs, which the grid does itself"
            raise ConfigError(f"grid {key}: the key {why}; expected another key, with all its values after one `=`")
        if isinstance(values, str) or not values:
            raise ConfigError(f"grid {key} = {values!r}: expected a list of at least one value")
        axes[key] = values
    return axes


def _axis(text: str) -> tuple[str, Sequence[object]]:
    key, equals, values = text.partition("=")
    if not (equals and values.strip() and "." in key):
        raise ConfigError(f"grid {text!r}: expected section.key=value,value, for example method.density=0.2,0.1")
    try:
        found: Sequence[object] = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        found = [_single(value) for value in values.split(",")]
    return key.strip(), found


def _single(text: str) -> object:
    """One value, as `--set` reads it."""
    table = parse_overrides([f"value.value={text}"])["value"]
    return table["value"] if isinstance(table, Mapping) else text


def _seeds(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(f"seeds {text!r}: expected numbers and ranges from low to high, for example 0-2 or 0,3,7")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"seeds {text!r}: a seed comes twice; give each once")
    return numbers
