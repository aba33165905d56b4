"""FedTiny reduced to its pruning: no selection of a first mask, no blocks, every pruned weight's gradient uploaded.

The "simple dynamic pruning" baseline that FedPruning calls FedTinyClean; federated RigL (Evci et al., ICML 2020) with
averaged gradients. Evidence: read in the FedPruning code, which has no paper of its own for it.

Deviations: the code also sends gradients of kept weights, which decide nothing; it reads the stem and the classifier
as prunable, here `exclude` says so; a weight dropped in an adjustment does not compete for growth in the same one.
Upstream faults avoided: pruned weights that keep what the last step left there, so that regrown ones do not start at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedsparse.methods import regrow
from fedsparse.methods.base import DrawnMethod, register
from fedsparse.methods.roles import Client, CostRow, Extras, Server, Update, client_task
from fedsparse.pattern import Topology

__all__ = ["FedTinyClean"]


@register
@dataclass(frozen=True, kw_only=True)
class FedTinyClean(DrawnMethod, regrow.AskingMethod):
    """Drops the smallest weights of every layer and grows those of the largest mean gradient."""

    name: ClassVar[str] = "fedtiny_clean"
    adjust_until: int = 100
    swap_fraction: float = 0.2
    score: str = "magnitude"

    def asked(self, topology: Topology, round: int) -> dict[str, int]:
        """Gradients wanted of each client: those of all pruned weights, in layers that swap any."""
        counts = self.swap_counts(topology, round)
        return {name: p.size - p.nnz if counts[name] else 0 for name, p in topology.items()}

    @client_task
    def train(self, client: Client) -> Extras:
        client.sgd()
        return regrow.propose(client)

    def costs(self, topology: Topology, round: int) -> CostRow:
        """As of all that ask, but positions are not uploaded: the mask tells those of all pruned weights."""
        row = super().costs(topology, round)
        return replace(row, numbers_up=row.buffer_bytes // 8)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        if not self.adjusts(server.round):
            return None
        return regrow.regrown(server.weights, updates, self.swap_counts(server.weights.topology, server.round))
