"""Which reply belongs to which request, whatever an engine delivers."""

from collections.abc import Sequence
from dataclasses import replace

from fedsparse.federated.engines.base import Reply, Request, unanswered

__all__ = ["by_request"]


def by_request(requests: Sequence[Request], replies: Sequence[Reply]) -> tuple[list[list[Reply]], list[Reply]]:
    """For each request the replies of its client, at least one, in the order they came; and those of nobody asked."""
    of_client: dict[int, list[Reply]] = {request.client_id: [] for request in requests}
    stray = []
    for reply in replies:
        if reply.client_id in of_client:
            of_client[reply.client_id].append(reply)
        else:
            stray.append(replace(reply, reason="the client was not asked in this exchange"))
    found = [of_client[r.client_id] or [unanswered(r, "the engine delivered no answer")] for r in requests]
    return found, stray
