"""Generators that depend on names, not on what ran before: same seed, same numbers, in any process and any order."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["cohort", "generator", "network_randomness"]


def generator(*names: str | int) -> torch.Generator:
    """CPU generator of a run's seed, and the round, client and purpose it is for."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def cohort(seed: int, round: int, *, clients: int, size: int) -> list[int]:
    """The clients of a round, drawn without replacement, in ascending order."""
    order = torch.randperm(clients, generator=generator(seed, round, "cohort"))
    return sorted(order[:size].tolist())


@contextmanager
def network_randomness(generator: torch.Generator, device: str) -> Iterator[None]:
    """Inside, what a network draws by itself follows from `generator`; outside, nothing has changed.

    Dropout and its like take no generator but torch's global ones, of the CPU and of `device`; both are set here for
    as long as the block lasts, then put back.
    """
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(generator.initial_seed())
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(generator.initial_seed())
        yield
