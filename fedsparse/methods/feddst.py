"""FedDST: clients move the masks, the server merges them.

Bibikar et al., "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning Better", AAAI 2022,
arXiv:2112.09824. Evidence: the authors' code; the paper's text was not at hand.

Deviations: masks start random or by magnitude at this library's ERK densities, not at the authors' own variant of
them; alpha enters the schedule once, not squared; grown weights are chosen among pruned ones only, where the code can
pick kept ones and reset them; gradients come from a mini-batch of their own; a layer drops and grows at once, so that
no dropped weight comes straight back; the swap leaves the last epoch to the grown weights, because what is still 0
when the server ranks magnitudes would go again. The optional proximal term and vote threshold are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsparse import pruning
from fedsparse.methods.aggregation import masked_mean
from fedsparse.methods.base import DrawnMethod, DynamicMethod, register
from fedsparse.methods.roles import Client, Extras, Server, Update, client_task, weights_of
from fedsparse.nn import sparse_layers, topology
from fedsparse.pattern import Pattern, Topology, Weights

__all__ = ["FedDST"]


@register
@dataclass(frozen=True, kw_only=True)
class FedDST(DrawnMethod, DynamicMethod):
    """In adjusting rounds each client swaps weights of its own; the largest of the merged ones stay.

    Attributes:
        epochs_before: local epochs before the swap; None is all but the last.
    """

    name: ClassVar[str] = "feddst"
    client_masks: ClassVar[bool] = True
    density: float = 0.2
    adjust_every: int = 15
    adjust_until: int = 300
    swap_fraction: float = 0.01
    epochs_before: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("epochs_before", self.epochs_before is None or self.epochs_before >= 0, "at least 0, or nothing")

    # ---- clients
    @client_task
    def train(self, client: Client) -> Extras:
        if not self.adjusts(client.round):
            client.sgd()
            return {}
        before, after = self.epochs_around(client)
        client.sgd(epochs=before)
        counts, layers = self.swap_counts(topology(client.model), client.round), sparse_layers(client.model)
        largest = client.top_pruned_gradients(counts)
        swapped = pruning.swap_all(
            {name: layers[name].pattern for name in largest},
            {name: layers[name].values for name in largest},
            {name: (top.indices, top.values) for name, top in largest.items()},
            counts,
        )
        client.adopt(Topology(swapped))
        client.sgd(epochs=after)
        return {}

    def epochs_around(self, client: Client) -> tuple[int, int]:
        """Local epochs before and after the swap."""
        before = client.epochs - 1 if self.epochs_before is None else min(self.epochs_before, client.epochs)
        return before, client.epochs - before

    # ---- server
    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """Each position averaged over the clients that keep it, under the union of their masks."""
        return masked_mean(updates)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """The K_l largest |w| of each layer of the merged masks, in whole units by their root mean square."""
        if not self.adjusts(server.round):
            return None
        sizes, merged = weights_of(updates[0]).topology, server.weights
        return Topology({name: _largest(merged, name, sizes[name]) for name in merged.topology})


def _largest(weights: Weights, name: str, like: Pattern) -> Pattern:
    """Pattern of the largest |w| among the kept ones, as many as `like` has."""
    pattern = weights.topology[name]
    return pruning.likewise(like, pruning.kept_units(pattern), pruning.magnitudes(pattern, weights.values[name]))
