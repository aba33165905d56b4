"""Clients one after another in this process: deterministic, and the engine that measurements come from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fedsparse.federated.client import ClientHost
from fedsparse.federated.engines.base import Reply, Request
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import ClientStore

__all__ = ["InlineEngine"]


class InlineEngine:
    """Hosts all clients of a run on one network that each takes in turn.

    Args:
        plan: the run.
        folder: where the clients' states are meanwhile; a temporary folder if None.
    """

    def __init__(self, plan: Plan, *, folder: Path | None = None) -> None:
        self._store = ClientStore(folder)
        self._host = ClientHost(plan, self._store.topologies)
        self._threads = plan.threads

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        with _threads(self._threads):
            replies = [self._served(request) for request in requests]
        self._store.tidy()
        return replies

    def _served(self, request: Request) -> Reply:
        reply, kept = self._host.serve(request, self._store.kept(request.client_id))
        self._store.commit(request.client_id, kept)
        return reply

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
