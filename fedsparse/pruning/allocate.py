"""How many weights each layer keeps at an overall density.

With n_l elements in layer l and a budget of B kept ones, a layer keeps d_l * n_l = clip(eps * s_l, u_l, n_l), u_l being
the elements of one unit of pruning, 1 for single weights. The scale eps makes these add up to B, and s_l is the layer's
share:

* `erk` (Erdos-Renyi kernel; Evci et al., 2020): raw density sum(shape) / prod(shape), so s_l = sum(shape);
* `er` (Erdos-Renyi; Mocanu et al., 2018): raw density (in + out) / (in * out) at every kernel position;
* `uniform`: s_l = n_l.

The usual iteration, which declares layers dense until no density exceeds 1, ends at the same densities where
no layer falls below one weight. All arithmetic is exact (integers and fractions).
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from fedsparse.errors import ConfigError, InfeasibleDensityError, PatternError
from fedsparse.pattern import Element, Granularity
from fedsparse.pruning.rounding import as_meant, floor_share

__all__ = ["BASES", "DISTRIBUTIONS", "allocate", "budget", "densities", "whole_units"]

Shape = tuple[int, ...]

_SHARES: dict[str, Callable[[Shape], int]] = {
    "erk": sum,
    "er": lambda shape: (shape[0] + shape[1]) * math.prod(shape[2:]),
    "uniform": math.prod,
}

DISTRIBUTIONS = tuple(_SHARES)
BASES = ("total", "prunable")

_TOLERANCE = Fraction(1, 200)  # of a density that a granularity fixes


def allocate(
    shapes: Mapping[str, Shape],
    density: float,
    *,
    distribution: str = "erk",
    others: int = 0,
    base: str = "total",
    granularity: Granularity = Element(),
) -> dict[str, int]:
    """K_l: number of kept weights of each layer, at least one unit, in total exactly `budget(...)` of single weights.

    Each layer gets the whole part of d_l * n_l; what is left of the budget goes, one each, to the layers with
    the largest fractional parts (ties to the earlier layer). The overall density never exceeds `density`. Larger units
    are dealt the same way, as far as they fit the budget.

    Args:
        shapes: dense shape `(out, in, ...)` of each prunable weight.
        density: kept share, in (0, 1], read as the fraction it stands for.
        distribution: `erk`, `er` or `uniform`.
        others: trainable elements that stay dense (biases, norm parameters, excluded layers).
        base: `total` counts `others` in the density, `prunable` counts prunable weights only.
        granularity: units of pruning.

    Raises:
        ConfigError: an unknown distribution or base, a density outside (0, 1], or another one than that which the
            granularity fixes.
        InfeasibleDensityError: the dense elements and one unit a layer already exceed the density.
    """
    _check_names(distribution, base)
    if granularity.share is not None:
        return _fixed(shapes, density, others=others, base=base, granularity=granularity)
    units = _unit_sizes(shapes, granularity)
    kept = _kept(shapes, density, units, distribution=distribution, others=others, base=base)
    return whole_units(kept, shapes, budget(shapes, density, others=others, base=base, granularity=granularity), units)


def whole_units(
    wanted: Mapping[str, Fraction], shapes: Mapping[str, Shape], total: int, units: Mapping[str, int]
) -> dict[str, int]:
    """The whole units in the wanted numbers of weights, and of what is left of `total` one more each, where it fits.

    These go to the layers with the largest fractional parts, ties to the earlier layer. A layer wanted whole is whole.

    Args:
        units: weights of a unit of each layer.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    counts = {
        name: sizes[name] if share == sizes[name] else math.floor(share / units[name]) * units[name]
        for name, share in wanted.items()
    }
    left = total - sum(counts.values())
    # Stable: ties keep layer order.
    for name in sorted(counts, key=lambda name: (counts[name] - wanted[name]) / units[name]):
        more = min(units[name], sizes[name] - counts[name])
        if more <= left:
            counts[name] += more
            left -= more
    return counts


def _unit_sizes(shapes: Mapping[str, Shape], granularity: Granularity) -> dict[str, int]:
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise PatternError(f"{name!r}: a prunable weight needs two or more non-empty axes, got shape {shape}")
    return {name: granularity.tiling(shape).size for name, shape in shapes.items()}


def _fixed(
    shapes: Mapping[str, Shape], density: float, *, others: int, base: str, granularity: Granularity
) -> dict[str, int]:
    """What layers keep where the granularity fixes it; the density must be its share, or what that makes of the model.

    Both within half a hundredth, as far as a density is usually written.
    """
    _unit_sizes(shapes, granularity)  # for its errors
    counts = {name: granularity.fixed_count(shape) for name, shape in shapes.items()}
    share = granularity.share
    assert share is not None
    dense = others if base == "total" else 0
    total = sum(math.prod(shape) for shape in shapes.values()) + dense
    overall = Fraction(sum(counts.values()) + dense, total) if total else share
    if min(abs(as_meant(density) - share), abs(as_meant(density) - overall)) > _TOLERANCE:
        raise ConfigError(
            f"density {density} cannot be had with granularity {str(granularity)!r}, which keeps {float(share):.4g} of "
            f"every layer and so {float(overall):.4g} of all elements; use density={float(share):.4g}, or another "
            "granularity"
        )
    return counts


def densities(
    shapes: Mapping[str, Shape],
    density: float,
    *,
    distribution: str = "erk",
    others: int = 0,
    base: str = "total",
) -> dict[str, float]:
    """d_l: density of each layer before rounding to whole weights. Arguments and errors as `allocate`."""
    _check_names(distribution, base)
    units = _unit_sizes(shapes, Element())
    kept = _kept(shapes, density, units, distribution=distribution, others=others, base=base)
    return {name: float(share / math.prod(shapes[name])) for name, share in kept.items()}


def budget(
    shapes: Mapping[str, Shape],
    density: float,
    *,
    others: int = 0,
    base: str = "total",
    granularity: Granularity = Element(),
) -> int:
    """Number of prunable weights that may be kept in all. Arguments and errors as `allocate`."""
    _check_names("uniform", base)
    if granularity.share is not None:
        return sum(_fixed(shapes, density, others=others, base=base, granularity=granularity).values())
    return math.floor(_budget(shapes, density, _unit_sizes(shapes, granularity), others=others, base=base))


def _check_names(distribution: str, base: str) -> None:
    if distribution not in _SHARES:
        raise ConfigError(f"unknown distribution {distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
    if base not in BASES:
        raise ConfigError(f"unknown density base {base!r}; expected one of {', '.join(BASES)}")


def _budget(
    shapes: Mapping[str, Shape], density: float, units: Mapping[str, int], *, others: int, base: str
) -> Fraction:
    if not 0 < density <= 1:
        raise ConfigError(f"density must be in (0, 1], got {density}")
    if others < 0:
        raise ConfigError(f"others, the number of dense elements, cannot be negative, got {others}")
    weights = sum(math.prod(shape) for shape in shapes.values())
    if base == "prunable":
        others = 0
    if floor_share(density, weights + others) - others < sum(units.values()) or (density < 1 and not shapes):
        raise _infeasible(density, units, weights=weights, others=others)
    if base == "prunable":
        return as_meant(density) * weights
    return Fraction(floor_share(density, weights + others) - others)


def _infeasible(density: float, units: Mapping[str, int], *, weights: int, others: int) -> InfeasibleDensityError:
    least = sum(units.values())
    smallest = _smallest_float(least + others, weights + others) if units else 1.0
    one = "1" if least == len(units) else f"one unit, {least} in all"
    return InfeasibleDensityError(
        f"density {density} cannot be reached: of {weights + others} elements {others} stay dense, each of "
        f"{len(units)} prunable weights keeps at least {one}; the smallest feasible density is {smallest!r}; "
        f"raise the density or exclude fewer layers",
        smallest=smallest,
    )


def _smallest_float(needed: int, total: int) -> float:
    """Smallest float whose share of `total`, rounded down, is `needed`."""
    share = needed / total
    return share if floor_share(share, total) >= needed else math.nextafter(share, 1.0)


def _kept(
    shapes: Mapping[str, Shape],
    density: float,
    units: Mapping[str, int],
    *,
    distribution: str,
    others: int,
    base: str,
) -> dict[str, Fraction]:
    """d_l * n_l of each layer, exactly."""
    total = _budget(shapes, density, units, others=others, base=base)
    shares = {name: _SHARES[distribution](shape) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not shapes:
        return {}
    scale = _scale(shares, units, sizes, total)
    return {name: _clipped(scale, shares[name], units[name], sizes[name]) for name in shapes}


def _clipped(scale: Fraction, share: int, least: int, size: int) -> Fraction:
    return min(max(scale * share, Fraction(least)), Fraction(size))


def _scale(shares: Mapping[str, int], least: Mapping[str, int], sizes: Mapping[str, int], total: Fraction) -> Fraction:
    """eps with sum of clip(eps * s_l, u_l, n_l) = total.

    The sum grows with eps and is linear between the values of eps at which a layer leaves u_l or reaches n_l.
    Bisection over these values finds the segment that contains `total`, in which eps follows directly.
    """

    def used(scale: Fraction) -> Fraction:
        return sum((_clipped(scale, shares[name], least[name], sizes[name]) for name in shares), Fraction(0))

    corners = sorted({Fraction(end, shares[name]) for name in shares for end in (least[name], sizes[name])})
    low, high = 0, len(corners) - 1  # used(corners[low]) <= total <= used(corners[high])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if used(corners[middle]) <= total else (low, middle)
    start, end = corners[low], corners[high]
    if used(end) == used(start):
        return start
    return start + (total - used(start)) * (end - start) / (used(end) - used(start))
