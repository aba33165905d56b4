"""Dealing a training set to clients."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ConfigError, DataError

__all__ = ["partition"]

Indices = NDArray[np.int64]
SCHEMES = ("dirichlet", "iid", "natural", "quantity", "shards")
_BY_LABEL = ("dirichlet", "shards")
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
    groups: Indices | None = None,
) -> tuple[Indices, ...]:
    """Indices of each client's samples; every sample goes to exactly one client, with `natural` to one at most.

    Args:
        labels: `(n,)` labels, or `(n, length)` tokens, of which only the number of samples counts.
        clients: number of clients.
        scheme: `dirichlet` (label skew: Hsu et al., arXiv:1909.06335, with FedML's cap on client size), `iid`,
            `natural` (a group is a client), `quantity` (quantity skew: one Dirichlet vector over the clients cuts the
            shuffled samples, as FedRTS deals stories, arXiv:2501.19122; evidence: its text) or `shards` (sorted by
            label and cut: McMahan et al., AISTATS 2017).
        generator: all randomness.
        alpha: concentration of `dirichlet` and `quantity`; smaller is more skewed.
        min_samples: fewest samples of any client; `natural` takes groups with at least as many.
        shards_per_client: pieces of `shards` each client gets.
        groups: `(n,)` story or speaker of each sample; `iid` and `quantity` keep one together, where `natural`
            draws as many as there are clients and leaves the others out.

    Raises:
        ConfigError: unknown scheme, one that the samples have no labels or groups for, or a value out of range.
        DataError: the samples do not suffice.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown partition scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if clients < 1 or not 0 < alpha < np.inf or min_samples < 0 or shards_per_client < 1:
        raise ConfigError(
            "a partition needs clients >= 1, a finite alpha > 0, min_samples >= 0 and shards_per_client >= 1, got "
            f"clients={clients}, alpha={alpha}, min_samples={min_samples}, shards_per_client={shards_per_client}"
        )
    if labels.ndim > 1 and scheme in _BY_LABEL:
        raise ConfigError(f"partition {scheme!r} goes by class labels; for text use quantity, iid or natural")
    if groups is None and scheme == "natural":
        raise ConfigError("partition 'natural' needs texts with stories or speakers; use one of the other schemes")
    if len(labels) < clients * min_samples:
        raise DataError(
            f"{len(labels)} samples cannot give {clients} clients at least {min_samples} each; "
            "use fewer clients, a smaller min_samples or more data"
        )
    members = _members(np.arange(len(labels)) if groups is None else groups)
    if scheme == "natural":
        parts = _natural(members, clients, min_samples, generator)
    elif scheme == "quantity":
        parts = _quantity(members, clients, alpha, min_samples, generator)
    elif scheme == "iid":
        parts = [_joined(members, part) for part in np.array_split(generator.permutation(len(members)), clients)]
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


def _members(groups: Indices) -> list[Indices]:
    """Positions of the samples of each group, groups in ascending order."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(groups) else []


def _joined(members: Sequence[Indices], chosen: Indices) -> Indices:
    """Samples of the chosen groups."""
    return np.concatenate([np.empty(0, dtype=np.int64), *(members[group] for group in chosen)])


def _natural(members: list[Indices], clients: int, min_samples: int, generator: np.random.Generator) -> list[Indices]:
    large = [group for group in members if len(group) >= min_samples]
    if len(large) < clients:
        raise DataError(
            f"{len(large)} of {len(members)} natural clients have {min_samples} samples or more, data.clients asks for "
            f"{clients}; use fewer clients or a smaller min_samples"
        )
    return [large[i] for i in np.sort(generator.permutation(len(large))[:clients])]


def _quantity(
    members: list[Indices], clients: int, alpha: float, min_samples: int, generator: np.random.Generator
) -> list[Indices]:
    """One vector of shares for all: clients differ in how much they hold, not in what."""
    for _ in range(_ATTEMPTS):
        order = generator.permutation(len(members))
        edges = np.cumsum(generator.dirichlet(np.full(clients, alpha)))[:-1]
        parts = [_joined(members, part) for part in np.split(order, (edges * len(members)).astype(np.int64))]
        if min(map(len, parts)) >= min_samples:
            return parts
    raise DataError(
        f"no Dirichlet({alpha}) split of {len(members)} groups of samples gave all {clients} clients {min_samples} "
        f"samples in {_ATTEMPTS} tries; use a larger alpha, fewer clients or a smaller min_samples"
    )


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
