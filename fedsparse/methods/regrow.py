"""What methods share that let clients propose pruned positions to grow: the question, the answer, the swap."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.methods import checks
from fedsparse.methods.roles import Client, Download, Extras, Server, Update
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire.payload import IndexSet, SparseVector

__all__ = ["ask", "asked", "check", "propose", "regrown", "sparse_mean"]

_COUNTS, _TOP = "counts", "top"


def ask(server: Server, counts: Mapping[str, int]) -> Download:
    """The global weights, and for how many pruned positions of each named weight a client is asked."""
    return Download(server.weights, {_COUNTS: counts})


def asked(extras: Extras) -> Mapping[str, int] | None:
    """The counts in the extras of a download made by `ask`; None in rounds without a question."""
    return cast(Mapping[str, int] | None, extras.get(_COUNTS))


def propose(client: Client) -> Extras:
    """The answer to `ask`: positions and signed values of the largest gradients, nothing where nothing was asked."""
    counts = asked(client.extras)
    return {} if counts is None else {_TOP: client.top_pruned_gradients(counts)}


def check(sent: Download, update: Update, *, name: str = _TOP, kind: type[IndexSet] = SparseVector) -> None:
    """Refuses an answer to `ask` with other weights or more positions than asked for, or with kept ones.

    Args:
        name, kind: of the extra that holds the proposals.

    Raises:
        ClientError: see `checks.pruned_positions`.
    """
    counts = asked(sent.extras)
    if counts is not None:
        assert sent.weights is not None, "ask() sends weights"
        checks.pruned_positions(update.extras, name, counts=counts, topology=sent.weights.topology, kind=kind)


def regrown(weights: Weights, updates: Sequence[Update], counts: Mapping[str, int]) -> Topology:
    """Per named weight: the a_l smallest |w| dropped, the a_l largest mean gradients that clients proposed grown.

    Args:
        updates: answers to `ask` that have passed `check`.
        counts: a_l; weights not named keep their masks.
    """
    samples = sum(update.num_samples for update in updates)
    changed: dict[str, Pattern] = {}
    for name, count in counts.items():
        if count:
            sent = [(cast(Mapping[str, SparseVector], u.extras[_TOP])[name], u.num_samples) for u in updates]
            candidates, gradients = sparse_mean(sent, samples)
            pattern, values = weights.topology[name], weights.values[name]
            changed[name] = pruning.swap(pattern, values, candidates, scores=gradients, count=count)
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
