"""PruneFL at a fixed size: layers keep their number of weights, the largest mean squared gradients grow.

Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE TNNLS 34(10), 2023,
arXiv:1909.12326, as FedRTS (Huang et al., NeurIPS 2025, arXiv:2501.19122) and FedPruning run it as a baseline: random
masks, every weight costing the same time, no first stage, no free size. Evidence: the protocol is read in FedRTS, the
mean over local steps in the FedPruning code. `prunefl` is the paper's own method.

Deviations: a weight dropped in an adjustment does not compete for growth in the same one; clients square gradients in
adjusting rounds only, and of layers that swap. Upstream fault avoided: pruned weights that keep what the last step left
there, so that regrown ones do not start at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsparse import pruning
from fedsparse.methods import regrow
from fedsparse.methods.base import DrawnMethod, register
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task
from fedsparse.methods.squares import check_squares, cost_row, summed_gradients, totals
from fedsparse.nn import sparse_layers
from fedsparse.pattern import Topology

__all__ = ["PruneFLFixed"]


@register
@dataclass(frozen=True, kw_only=True)
class PruneFLFixed(DrawnMethod, regrow.AskingMethod):
    """Drops the smallest weights of every layer and grows those whose gradients are largest in the mean square."""

    name: ClassVar[str] = "prunefl_fixed"

    @client_task
    def train(self, client: Client) -> Extras:
        """Local training; in adjusting rounds, beside it, the mean over its steps of g^2 at every position."""
        counts = regrow.asked(client.extras)
        if counts is None:
            client.sgd()
            return {}
        layers = {name: layer for name, layer in sparse_layers(client.model).items() if counts[name]}
        with summed_gradients(layers, {}, term=torch.square) as found:
            client.sgd()
        return {"squares": {name: (square / found.steps[name]).cpu() for name, square in found.sums.items()}}

    def check(self, sent: Download, update: Update) -> None:
        counts = regrow.asked(sent.extras)
        if counts is not None:
            assert sent.weights is not None, "ask() sends weights"
            check_squares(update, sent.weights.topology, [name for name, count in counts.items() if count])

    def costs(self, topology: Topology, round: int) -> CostRow:
        """Dense gradients at every step of adjusting rounds, and their squares, of layers that swap."""
        counts = self.swap_counts(topology, round) if self.adjusts(round) else {}
        return cost_row(topology, [name for name, count in counts.items() if count], uploaded=True)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """Per layer: drop the a_l smallest |w|, grow the a_l largest of the clients' mean squares."""
        if not self.adjusts(server.round):
            return None
        topology, values = server.weights.topology, server.weights.values
        samples = sum(update.num_samples for update in updates)
        shares = [update.num_samples / samples for update in updates]
        counts = {name: count for name, count in self.swap_counts(topology, server.round).items() if count}
        changed = {}
        for name, squares in totals(updates, topology, counts, shares).items():
            pruned = (~topology[name].mask()).view(-1).nonzero().squeeze(1)
            # Roots, because larger units go by the mean square of what they are given.
            roots = squares.view(-1)[pruned].sqrt()
            changed[name] = pruning.swap(topology[name], values[name], pruned, scores=roots, count=counts[name])
        return topology.with_patterns(changed)
