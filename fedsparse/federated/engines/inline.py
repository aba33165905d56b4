"""Clients one after another in this process: deterministic, and the engine that measurements come from."""

from collections.abc import Sequence

from fedsparse.federated.client import ClientHost
from fedsparse.federated.engines.base import Reply, Request
from fedsparse.federated.plan import Plan

__all__ = ["InlineEngine"]


class InlineEngine:
    """Hosts all clients of a run on one network that each takes in turn."""

    def __init__(self, plan: Plan) -> None:
        self._host = ClientHost(plan)

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._host.serve(request) for request in requests]

    def memories(self) -> bytes:
        return self._host.memories()

    def restore(self, memories: bytes) -> None:
        self._host.restore(memories)

    def close(self) -> None:
        """Nothing is held beyond this object."""
