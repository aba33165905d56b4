"""What methods share that let clients propose pruned positions to grow: the question, the answer, the swap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.methods import checks
from fedsparse.methods.base import DynamicMethod
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire.payload import IndexSet, SparseVector

__all__ = ["AskingMethod", "SparseMean", "ask", "asked", "check", "propose", "regrown"]

_COUNTS, _TOP = "counts", "top"


@dataclass(frozen=True, kw_only=True)
class AskingMethod(DynamicMethod):
    """Settings of methods that, in adjusting rounds, ask clients for pruned positions to grow."""

    def asked(self, topology: Topology, round: int) -> dict[str, int]:
        """For how many positions of each weight of `topology` a client is asked in this round: as many as swap."""
        return self.swap_counts(topology, round)

    def download(self, server: Server, client_id: int) -> Download:
        if not self.adjusts(server.round):
            return super().download(server, client_id)
        return ask(server, self.asked(server.weights.topology, server.round))

    def check(self, sent: Download, update: Update) -> None:
        check(sent, update)

    def costs(self, topology: Topology, round: int) -> CostRow:
        """One mini-batch for the largest pruned gradients, of which position and value are held and uploaded."""
        wanted = sum(self.asked(topology, round).values()) if self.adjusts(round) else 0
        return CostRow(probes=min(wanted, 1), numbers_up=2 * wanted, buffer_bytes=8 * wanted)


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
    means = {name: SparseMean(weights.topology[name].size) for name, count in counts.items() if count}
    for update in updates if means else ():
        sent = cast(Mapping[str, SparseVector], update.extras[_TOP])
        for name, mean in means.items():
            mean.add(sent[name], update.num_samples / samples)
    changed: dict[str, Pattern] = {}
    for name, mean in means.items():
        candidates, gradients = mean.result()
        pattern, values = weights.topology[name], weights.values[name]
        changed[name] = pruning.swap(pattern, values, candidates, scores=gradients, count=counts[name])
    return weights.topology.with_patterns(changed)


class SparseMean:
    """Mean of sparse vectors of one size, entries that a client did not send counting as 0; in dense memory."""

    def __init__(self, size: int) -> None:
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._arrived = torch.zeros(size, dtype=torch.bool)

    def add(self, vector: SparseVector, share: float) -> None:
        """The vector of one more client, which has that share of the samples."""
        self._sums.index_add_(0, vector.indices, vector.values.double() * share)
        self._arrived[vector.indices] = True

    def result(self) -> tuple[Tensor, Tensor]:
        """Positions that arrived, `(c,)` int64 ascending, and their means `(c,)` float64."""
        positions = self._arrived.nonzero().squeeze(1)
        return positions, self._sums[positions]
