"""What methods share that let clients propose pruned positions to grow: the question, the answer, the swap."""

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.methods.roles import Client, Download, Extras, Server, Update
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire.payload import IndexSet, SparseVector

__all__ = ["ask", "asked", "propose", "proposals", "regrown", "sparse_mean"]

_Kind = TypeVar("_Kind", bound=IndexSet)

_COUNTS, _TOP = "counts", "top"


def ask(server: Server, counts: Mapping[str, int]) -> Download:
    """The global weights, and for how many pruned positions of each named weight a client is asked."""
    return Download(server.weights, {_COUNTS: counts})


def asked(client: Client) -> Mapping[str, int] | None:
    """The counts a client was sent with `ask`; None in rounds without a question."""
    return cast(Mapping[str, int] | None, client.extras.get(_COUNTS))


def propose(client: Client) -> Extras:
    """The answer to `ask`: positions and signed values of the largest gradients, nothing where nothing was asked."""
    counts = asked(client)
    return {} if counts is None else {_TOP: client.top_pruned_gradients(counts)}


def proposals(updates: Sequence[Update], extra: str, name: str, size: int, kind: type[_Kind]) -> list[_Kind | None]:
    """What each client proposes for one weight; None where it sent nothing, or not what it was asked for."""
    found = []
    for update in updates:
        sections = update.extras.get(extra)
        section = sections.get(name) if isinstance(sections, Mapping) else None
        found.append(section if isinstance(section, kind) and section.size == size else None)
    return found


def regrown(weights: Weights, updates: Sequence[Update], counts: Mapping[str, int]) -> Topology:
    """Per named weight: the a_l smallest |w| dropped, the a_l largest mean gradients that clients proposed grown.

    Args:
        counts: a_l; weights not named keep their masks.
    """
    samples = sum(update.num_samples for update in updates)
    changed: dict[str, Pattern] = {}
    for name, count in counts.items():
        pattern = weights.topology[name]
        found = zip(proposals(updates, _TOP, name, pattern.size, SparseVector), updates, strict=True)
        candidates, gradients = sparse_mean([(v, u.num_samples) for v, u in found if v is not None], samples)
        # Only pruned positions can grow, whatever a client may send.
        pruned = ~torch.isin(candidates, pattern.flat)
        candidates, gradients = candidates[pruned], gradients[pruned]
        changed[name] = pruning.swap(pattern, weights.values[name], candidates, scores=gradients, count=count)
    return weights.topology.with_patterns(changed)


def sparse_mean(vectors: Sequence[tuple[SparseVector, int]], samples: int) -> tuple[Tensor, Tensor]:
    """Mean of sparse vectors weighted by samples, entries that a client did not send counting as 0.

    Returns:
        Positions that arrived, `(c,)` int64 ascending, and their means `(c,)` float64.
    """
    if not vectors:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    positions, slot = torch.cat([v.indices for v, _ in vectors]).unique(return_inverse=True)
    weighted = torch.cat([v.values.double() * (n / samples) for v, n in vectors])
    return positions, torch.zeros(len(positions), dtype=torch.float64).index_add_(0, slot, weighted)
