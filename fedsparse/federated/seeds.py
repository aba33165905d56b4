"""Generators that depend on names, not on what ran before: same seed, same numbers, in any process and any order."""

import hashlib

import torch

__all__ = ["cohort", "generator"]


def generator(*names: str | int) -> torch.Generator:
    """CPU generator of a run's seed, and the round, client and purpose it is for."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def cohort(seed: int, round: int, *, clients: int, size: int) -> list[int]:
    """The clients of a round, drawn without replacement, in ascending order."""
    order = torch.randperm(clients, generator=generator(seed, round, "cohort"))
    return sorted(order[:size].tolist())
