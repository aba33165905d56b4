"""How many weights each layer keeps at an overall density.

With n_l elements in layer l and a budget of B kept ones, a layer keeps d_l * n_l = clip(eps * s_l, 1, n_l).
The scale eps makes these add up to B, and s_l is the layer's share:

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
from fedsparse.pruning.rounding import as_meant, floor_share

__all__ = ["BASES", "DISTRIBUTIONS", "allocate", "budget", "densities"]

Shape = tuple[int, ...]

_SHARES: dict[str, Callable[[Shape], int]] = {
    "erk": sum,
    "er": lambda shape: (shape[0] + shape[1]) * math.prod(shape[2:]),
    "uniform": math.prod,
}

DISTRIBUTIONS = tuple(_SHARES)
BASES = ("total", "prunable")


def allocate(
    shapes: Mapping[str, Shape],
    density: float,
    *,
    distribution: str = "erk",
    others: int = 0,
    base: str = "total",
) -> dict[str, int]:
    """K_l: number of kept weights of each layer, at least 1, in total exactly `budget(...)`.

    Each layer gets the whole part of d_l * n_l; what is left of the budget goes, one each, to the layers with
    the largest fractional parts (ties to the earlier layer). The overall density never exceeds `density`.

    Args:
        shapes: dense shape `(out, in, ...)` of each prunable weight.
        density: kept share, in (0, 1], read as the fraction it stands for.
        distribution: `erk`, `er` or `uniform`.
        others: trainable elements that stay dense (biases, norm parameters, excluded layers).
        base: `total` counts `others` in the density, `prunable` counts prunable weights only.

    Raises:
        ConfigError: an unknown distribution or base, or a density outside (0, 1].
        InfeasibleDensityError: the dense elements and one weight a layer already exceed the density.
    """
    kept = _kept(shapes, density, distribution=distribution, others=others, base=base)
    counts = {name: math.floor(share) for name, share in kept.items()}
    left = budget(shapes, density, others=others, base=base) - sum(counts.values())
    by_fraction = sorted(counts, key=lambda name: counts[name] - kept[name])  # stable: ties keep layer order
    for name in by_fraction[:left]:
        counts[name] += 1
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
    kept = _kept(shapes, density, distribution=distribution, others=others, base=base)
    return {name: float(share / math.prod(shapes[name])) for name, share in kept.items()}


def budget(shapes: Mapping[str, Shape], density: float, *, others: int = 0, base: str = "total") -> int:
    """Number of prunable weights that may be kept in all. Arguments and errors as `allocate`."""
    return math.floor(_budget(shapes, density, others=others, base=base))


def _budget(shapes: Mapping[str, Shape], density: float, *, others: int, base: str) -> Fraction:
    if not 0 < density <= 1:
        raise ConfigError(f"density must be in (0, 1], got {density}")
    if base not in BASES:
        raise ConfigError(f"unknown density base {base!r}; expected one of {', '.join(BASES)}")
    if others < 0:
        raise ConfigError(f"others, the number of dense elements, cannot be negative, got {others}")
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise PatternError(f"{name!r}: a prunable weight needs two or more non-empty axes, got shape {shape}")
    weights = sum(math.prod(shape) for shape in shapes.values())
    if base == "prunable":
        others = 0
    if floor_share(density, weights + others) - others < len(shapes) or (density < 1 and not shapes):
        raise _infeasible(density, weights=weights, layers=len(shapes), others=others)
    if base == "prunable":
        return as_meant(density) * weights
    return Fraction(floor_share(density, weights + others) - others)


def _infeasible(density: float, *, weights: int, layers: int, others: int) -> InfeasibleDensityError:
    smallest = _smallest_float(layers + others, weights + others) if layers else 1.0
    return InfeasibleDensityError(
        f"density {density} cannot be reached: of {weights + others} elements {others} stay dense, each of "
        f"{layers} prunable weights keeps at least 1; the smallest feasible density is {smallest!r}; "
        f"raise the density or exclude fewer layers",
        smallest=smallest,
    )


def _smallest_float(needed: int, total: int) -> float:
    """Smallest float whose share of `total`, rounded down, is `needed`."""
    share = needed / total
    return share if floor_share(share, total) >= needed else math.nextafter(share, 1.0)


def _kept(
    shapes: Mapping[str, Shape], density: float, *, distribution: str, others: int, base: str
) -> dict[str, Fraction]:
    """d_l * n_l of each layer, exactly."""
    if distribution not in _SHARES:
        raise ConfigError(f"unknown distribution {distribution!r}; expected one of {', '.join(DISTRIBUTIONS)}")
    total = _budget(shapes, density, others=others, base=base)
    shares = {name: _SHARES[distribution](shape) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not shapes:
        return {}
    scale = _scale(shares, sizes, total)
    return {name: _clipped(scale, shares[name], sizes[name]) for name in shapes}


def _clipped(scale: Fraction, share: int, size: int) -> Fraction:
    return min(max(scale * share, Fraction(1)), Fraction(size))


def _scale(shares: Mapping[str, int], sizes: Mapping[str, int], total: Fraction) -> Fraction:
    """eps with sum of clip(eps * s_l, 1, n_l) = total.

    The sum grows with eps and is linear between the values of eps at which a layer leaves 1 or reaches n_l.
    Bisection over these values finds the segment that contains `total`, in which eps follows directly.
    """

    def used(scale: Fraction) -> Fraction:
        return sum((_clipped(scale, shares[name], sizes[name]) for name in shares), Fraction(0))

    corners = sorted({Fraction(end, shares[name]) for name in shares for end in (1, sizes[name])})
    low, high = 0, len(corners) - 1  # used(corners[low]) <= total <= used(corners[high])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if used(corners[middle]) <= total else (low, middle)
    start, end = corners[low], corners[high]
    if used(end) == used(start):
        return start
    return start + (total - used(start)) * (end - start) / (used(end) - used(start))
