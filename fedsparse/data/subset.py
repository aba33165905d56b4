"""Which samples to take when not all are wanted, class by class."""

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ConfigError

__all__ = ["balanced", "held_out"]


def balanced(labels: NDArray[np.generic], limit: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Ascending positions of `limit` samples of `labels` `(n,)`, spread over the classes as evenly as they allow."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    if limit < 1:
        raise ConfigError(f"a limit of samples must be at least 1, got {limit}; leave it out to take all")
    order = generator.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before a sample
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])


def held_out(labels: NDArray[np.generic], share: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Mask `(n,)` of a random `share` of each class, rounded to whole samples."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held[members[: round(len(members) * share)]] = True
    return held
