"""When masks are adjusted, and how many weights each adjustment swaps."""

import math

from fedsparse.errors import ConfigError
from fedsparse.pattern import Topology
from fedsparse.pruning.rounding import floor_share

__all__ = ["adjusts", "cosine_share", "swap_counts"]


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

    `share` is read as the fraction it stands for and the product is exact: 0.29 of 100 weights is 29.

    Raises:
        ConfigError: `share` outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of weights to swap must be in [0, 1], got {share}")
    return {name: min(floor_share(share, p.nnz), p.size - p.nnz) for name, p in topology.items()}


def adjusts(round: int, every: int, until: int) -> bool:
    """Whether masks are adjusted in this round: every `every` rounds after the first, before round `until`.

    Raises:
        ConfigError: `every` is below 1.
    """
    if every < 1:
        raise ConfigError(f"rounds between adjustments must be at least 1, got {every}")
    return 0 < round < until and round % every == 0
