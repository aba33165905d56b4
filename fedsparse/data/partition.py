"""Dealing a training set to clients."""

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ConfigError, DataError

__all__ = ["partition"]

Indices = NDArray[np.int64]
SCHEMES = ("dirichlet", "iid", "shards")
_ATTEMPTS = 1000


def partition(
    labels: Indices,
    clients: int,
    *,
    scheme: str,
    generator: np.random.Generator,
    alpha: float = 0.5,
    min_samples: int = 1,
    shards_per_client: int = 2,
) -> tuple[Indices, ...]:
    """Indices of each client's samples; every sample goes to exactly one client.

    Args:
        labels: `(n,)` labels.
        clients: number of clients.
        scheme: `dirichlet` (label skew: Hsu et al., arXiv:1909.06335, with FedML's cap on client size), `iid`, or
            `shards` (sorted by label and cut: McMahan et al., AISTATS 2017).
        generator: all randomness.
        alpha: concentration of `dirichlet`; smaller is more skewed.
        min_samples: fewest samples of any client.
        shards_per_client: pieces of `shards` each client gets.

    Raises:
        ConfigError: unknown scheme or a value out of range.
        DataError: the samples do not suffice.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown partition scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if clients < 1 or not 0 < alpha < np.inf or min_samples < 0 or shards_per_client < 1:
        raise ConfigError(
            "a partition needs clients >= 1, a finite alpha > 0, min_samples >= 0 and shards_per_client >= 1, got "
            f"clients={clients}, alpha={alpha}, min_samples={min_samples}, shards_per_client={shards_per_client}"
        )
    if len(labels) < clients * min_samples:
        raise DataError(
            f"{len(labels)} samples cannot give {clients} clients at least {min_samples} each; "
            "use fewer clients, a smaller min_samples or more data"
        )
    if scheme == "iid":
        parts = np.array_split(generator.permutation(len(labels)), clients)
    elif scheme == "shards":
        parts = _shards(labels, clients, shards_per_client, generator)
    else:
        parts = _dirichlet(labels, clients, alpha, min_samples, generator)
    smallest = min(len(part) for part in parts)
    if smallest < min_samples:
        raise DataError(
            f"the smallest client got {smallest} samples, min_samples asks for {min_samples}; "
            "use fewer clients or fewer shards_per_client"
        )
    return tuple(np.sort(part).astype(np.int64) for part in parts)


def _shards(labels: Indices, clients: int, each: int, generator: np.random.Generator) -> list[Indices]:
    shuffled = generator.permutation(len(labels))  # so that equal labels come in random order
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(by_label, clients * each)
    dealt = generator.permutation(clients * each).reshape(clients, each)
    return [np.concatenate([pieces[i] for i in row]) for row in dealt]


def _dirichlet(
    labels: Indices, clients: int, alpha: float, min_samples: int, generator: np.random.Generator
) -> list[Indices]:
    """Each class is split by proportions from Dirichlet(alpha); clients at their fair share get no more classes."""
    cap = len(labels) / clients
    for _ in range(_ATTEMPTS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        sizes = np.zeros(clients, dtype=np.int64)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(clients, alpha)) * (sizes < cap)
            # With a tiny alpha all mass can sit on full clients: then the open ones share alike.
            shares = shares / shares.sum() if shares.sum() > 0 else (sizes < cap) / (sizes < cap).sum()
            edges = np.cumsum(shares)
            edges[np.flatnonzero(shares)[-1] :] = 1.0  # else rounding leaves a last sample to a full client
            for client, piece in enumerate(np.split(members, (edges[:-1] * len(members)).astype(np.int64))):
                parts[client].append(piece)
                sizes[client] += len(piece)
        if sizes.min() >= min_samples:
            none = np.empty(0, dtype=np.int64)  # of no samples there are no pieces to join
            return [np.concatenate([none, *pieces]) for pieces in parts]
    raise DataError(
        f"no Dirichlet({alpha}) split of {len(labels)} samples gave all {clients} clients {min_samples} samples in "
        f"{_ATTEMPTS} tries; use a larger alpha, fewer clients or a smaller min_samples"
    )
