"""When masks are adjusted and how many weights each adjustment swaps; how density falls over pruning steps."""

import math

from fedsparse.errors import ConfigError
from fedsparse.pattern import Pattern, Topology
from fedsparse.pruning.rounding import floor_share
from fedsparse.pruning.units import whole

__all__ = ["COURSES", "adjusts", "cosine_share", "density_path", "swap_counts"]

COURSES = ("exponential", "linear")


def cosine_share(fraction: float, round: int, until: int) -> float:
    """Share of kept weights to swap in a round, from `fraction` in round 0 down to 0 from round `until` on.

    fraction / 2 * (1 + cos(pi * round / until)), the schedule of RigL (Evci et al., ICML 2020). Rounded to 12
    decimals, so that a third of the way from 0.4 gives 0.3 and not a float beside it.

    Raises:
        ConfigError: `fraction` outside [0, 1] or a negative round.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"the initial swap fraction must be in [0, 1], got {fraction}")
    if round < 0:
        raise ConfigError(f"a round cannot be negative, got {round}")
    if round >= until:
        return 0.0
    return float(f"{fraction / 2 * (1 + math.cos(math.pi * round / until)):.12f}")


def swap_counts(topology: Topology, share: float) -> dict[str, int]:
    """a_l: weights each layer swaps, min(floor(share * K_l), n_l - K_l).

    `share` is read as the fraction it stands for and the product is exact: 0.29 of 100 weights is 29. Of larger units,
    the number of whole ones that comes closest to floor(share * K_l) weights.

    Raises:
        ConfigError: `share` outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of weights to swap must be in [0, 1], got {share}")
    return {name: min(_in_units(floor_share(share, p.nnz), p), p.size - p.nnz) for name, p in topology.items()}


def _in_units(weights: int, pattern: Pattern) -> int:
    """Weights of the whole units of a pattern that come closest to a number of weights."""
    size = pattern.granularity.tiling(pattern.shape).size
    return whole(weights, size) * size


def adjusts(round: int, every: int, until: int) -> bool:
    """Whether masks are adjusted in this round: every `every` rounds after the first, before round `until`.

    Raises:
        ConfigError: `every` is below 1.
    """
    if every < 1:
        raise ConfigError(f"rounds between adjustments must be at least 1, got {every}")
    return 0 < round < until and round % every == 0


def density_path(density: float, iterations: int, course: str = "exponential") -> list[float]:
    """Overall density after each of `iterations` pruning steps from 1 down to `density`; one is pruning at a stroke.

    `exponential` keeps the same share in every step, density^(i / iterations) after step i; `linear` removes the same
    number, 1 - (1 - density) i / iterations. The last entry is `density` itself.

    Raises:
        ConfigError: a density outside (0, 1], no iterations, or an unknown course.
    """
    if not 0 < density <= 1 or iterations < 1:
        raise ConfigError(f"expected a density in (0, 1] and at least 1 iteration, got {density} and {iterations}")
    if course not in COURSES:
        raise ConfigError(f"unknown course of pruning {course!r}; expected one of {', '.join(COURSES)}")
    shares = [step / iterations for step in range(1, iterations)]
    before = [density**share if course == "exponential" else 1 - (1 - density) * share for share in shares]
    return [*before, density]
