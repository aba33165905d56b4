"""FedSGC: clients swap weights with an eye on the direction in which the global model moved.

Tian et al., "Gradient-Congruity Guided Federated Sparse Training", ICLR 2024 workshop PML4LRS, arXiv:2405.01189.
Evidence: abstract and a re-implementation that quotes its equations; the paper's text was not at hand.

Deviations: a pruned weight has no local direction, so -sign(gradient) stands for it; one share guides drops and growth
alike; the client holds the gradients of one mini-batch at all pruned positions for a moment, because agreeing ones may
lie anywhere in their order. Larger units than single weights move along with the direction, or against it, where the
sum over their weights of direction times move does. Beyond that it is `feddst`, whose deviations hold here too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.methods.aggregation import masked_mean_with_absent
from fedsparse.methods.base import register
from fedsparse.methods.feddst import FedDST
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task
from fedsparse.nn import sparse_layers, topology
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.pruning.rounding import floor_share
from fedsparse.wire.payload import SignMap, SparseVector

__all__ = ["FedSGC", "guided_swap"]


@register
@dataclass(frozen=True, kw_only=True)
class FedSGC(FedDST):
    """Drops weights that move against the global model first, and grows those that would move along with it first.

    Attributes:
        guided_share: share of a layer's swaps that look at the direction (lambda); the others go by magnitude alone.
        absent_weight: how much clients without an update count in the average, with the old global weights: 1 is by
            all their samples (Eq. 7), 0 not at all.
    """

    name: ClassVar[str] = "fedsgc"
    adjust_every: int = 20
    guided_share: float = 0.01
    absent_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("guided_share", 0 <= self.guided_share <= 1, "a share in [0, 1]")
        self._require("absent_weight", 0 <= self.absent_weight <= 1, "a share in [0, 1]")

    def download(self, server: Server, client_id: int) -> Download:
        if not self.adjusts(server.round):
            return super().download(server, client_id)
        return Download(server.weights, {"direction": server.memory["direction"]})

    def costs(self, topology: Topology, round: int) -> CostRow:
        """The direction counts like the weights, as in FedRTS's tables; gradients and the weights before are held."""
        row = super().costs(topology, round)
        weights = sum(pattern.size for pattern in topology.values())
        return replace(row, models_down=1, buffer_bytes=4 * weights + weights // 4) if row.probes else row

    # ---- clients
    @client_task
    def train(self, client: Client) -> Extras:
        if not self.adjusts(client.round):
            client.sgd()
            return {}
        before, after = self.epochs_around(client)
        layers, patterns = sparse_layers(client.model), topology(client.model)
        downloaded = {name: layer.values.detach().clone() for name, layer in layers.items()}
        client.sgd(epochs=before)
        counts = self.swap_counts(patterns, client.round)
        direction = cast(Mapping[str, SignMap], client.extras["direction"])
        pruned = {name: p.size - p.nnz if counts[name] else 0 for name, p in patterns.items()}
        swapped = {}
        for name, gradients in client.top_pruned_gradients(pruned).items():
            values = layers[name].values.detach()
            swapped[name] = guided_swap(
                patterns[name].to("cpu"),
                values.cpu(),
                (values - downloaded[name]).cpu(),
                gradients,
                direction[name].dense(),
                count=counts[name],
                guided=floor_share(self.guided_share, counts[name]),
            )
        client.adopt(Topology(swapped))
        client.sgd(epochs=after)
        return {}

    # ---- server
    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """Masked mean in which clients without an update speak for the old weights (Eq. 7)."""
        if self.adjusts(server.round + 1):
            server.memory["before"] = server.weights
        absent = server.num_samples - sum(update.num_samples for update in updates)
        return masked_mean_with_absent(updates, server.weights, round(self.absent_weight * absent))

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """As FedDST; before an adjusting round, also notes the direction sign(W_new - W_old) of every weight."""
        new = super().adjust(server, updates)
        server.memory.pop("direction", None)
        before = cast(Weights | None, server.memory.pop("before", None))
        if before is not None:
            after = server.weights if new is None else server.weights.moved_to(new)
            moves = {name: after.weight(name) - before.weight(name) for name in after.topology}
            server.memory["direction"] = {name: SignMap.of(move) for name, move in moves.items()}
        return new


def guided_swap(
    pattern: Pattern,
    values: Tensor,
    moved: Tensor,
    gradients: SparseVector,
    direction: Tensor,
    *,
    count: int,
    guided: int,
) -> Pattern:
    """Pattern after `count` swaps, up to `guided` drops and as many growths of which follow the global direction.

    Dropped are first kept weights that moved against the direction, then any, smallest |w| first. Grown are first
    pruned positions whose descent agrees with it, then any, largest |gradient| first. The last weight stays. Larger
    units are swapped whole, `count` and `guided` rounded to the closest number of them, as by `pruning.exchange`.

    Args:
        values, moved: `(nnz,)` kept weights, and how far local training moved them.
        gradients: of all pruned positions.
        direction: `(size,)` int8 signs of the last global move.
    """
    tiling, flat = pattern.granularity.tiling(pattern.shape), pattern.flat
    _, against = tiling.means_at(flat, direction[flat] * moved)
    _, along = tiling.means_at(gradients.indices, direction[gradients.indices] * gradients.values)
    units, grow = pruning.magnitudes_at(tiling, gradients.indices, gradients.values)
    drop, first = -pruning.magnitudes(pattern, values), pruning.whole(guided, tiling.size)
    return pruning.exchange(
        pattern,
        _preferred(drop, against < 0, first),
        units,
        _preferred(grow, along < 0, first),
        pruning.whole(count, tiling.size),
    )


def _preferred(scores: Tensor, marked: Tensor, count: int) -> Tensor:
    """Scores of which the `count` highest marked ones come before all others."""
    first = pruning.top(scores, min(count, int(marked.sum())), among=marked)
    return scores.index_fill(0, first, torch.inf)
