"""Clients in this process: deterministic, and the engine that measurements come from.

They come one after another, or `cohort_batch` at a time, whose local training runs as that of one network.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fedsparse.errors import ConfigError
from fedsparse.federated.client import ClientHost
from fedsparse.federated.cohort import CohortHost
from fedsparse.federated.engines.base import Reply, Request
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import ClientStore

__all__ = ["InlineEngine"]


class InlineEngine:
    """Hosts all clients of a run on one network that each takes in turn, or on a few that some take at a time.

    Args:
        plan: the run.
        folder: where the clients' states are meanwhile; a temporary folder if None.
        cohort_batch: how many clients are served at a time. With 2 or more, those whose task trains and returns are
            trained together; see `federated.cohort`. Results then differ by the order in which kernels add. Clients
            of similar size are taken together, as they have most mini-batches in common.

    Raises:
        ConfigError: `cohort_batch` is below 1.
    """

    def __init__(self, plan: Plan, *, folder: Path | None = None, cohort_batch: int = 1) -> None:
        if cohort_batch < 1:
            raise ConfigError(f"cohort_batch = {cohort_batch}: expected at least 1, which serves one client at a time")
        self._store = ClientStore(folder)
        self._threads = plan.threads
        self._sizes = plan.data.sizes
        self._cohort_batch = cohort_batch
        topologies = self._store.topologies
        self._host = ClientHost(plan, topologies) if cohort_batch == 1 else CohortHost(plan, topologies, cohort_batch)

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        with _threads(self._threads):
            for group in self._groups(requests):
                replies |= {reply.client_id: reply for reply in self._served(group)}
        self._store.tidy()
        return [replies[request.client_id] for request in requests]

    def _groups(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        """Who is served at a time."""
        size = self._cohort_batch
        ordered = requests if size == 1 else sorted(requests, key=lambda request: -self._sizes[request.client_id])
        for first in range(0, len(ordered), size):
            yield ordered[first : first + size]

    def _served(self, group: Sequence[Request]) -> list[Reply]:
        served = self._host.serve_all(group, [self._store.kept(request.client_id) for request in group])
        for reply, kept in served:
            self._store.commit(reply.client_id, kept)
        return [reply for reply, _ in served]

    def save(self, folder: Path) -> None:
        self._store.save(folder)

    def restore(self, folder: Path) -> None:
        self._store.restore(folder)

    def close(self) -> None:
        self._store.close()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes with `count` threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
