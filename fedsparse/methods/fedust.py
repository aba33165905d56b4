"""FedUST: FedDST that grows, and goes on, with the samples that pruning made the network forget.

From the FedPruning library; no paper was found, so its code is the only evidence.

Deviations: predictions are made in evaluation mode, where the code lets batch norm see the samples twice; a dropped
weight cannot come straight back; the server averages each position over the clients that keep it and otherwise does
as `feddst`, whose deviations hold here too. The code's accuracy threshold has no effect there and none here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.methods.base import register
from fedsparse.methods.feddst import FedDST
from fedsparse.methods.roles import Client, Extras, client_task
from fedsparse.nn import sparse_layers, topology
from fedsparse.pattern import Pattern, Topology
from fedsparse.wire.payload import SparseVector

__all__ = ["FedUST"]

_CHUNK = 256  # samples predicted at a time
_FEWEST = 2  # forgotten samples worth a mini-batch; with fewer, all samples serve
_NONE = torch.empty(0, dtype=torch.int64)


@register
@dataclass(frozen=True, kw_only=True)
class FedUST(FedDST):
    """Drops first, then grows by gradients of the samples whose prediction changed.

    Attributes:
        only_correct: whether only samples that were predicted correctly before can be forgotten.
        only_forgotten: whether the epochs after the swap train on forgotten samples alone.
    """

    name: ClassVar[str] = "fedust"
    only_correct: bool = True
    only_forgotten: bool = True

    @client_task
    def train(self, client: Client) -> Extras:
        if not self.adjusts(client.round):
            client.sgd()
            return {}
        before, after = self.epochs_around(client)
        client.sgd(epochs=before)
        full = topology(client.model)
        counts = {name: min(a, full[name].nnz - 1) for name, a in self.swap_counts(full, client.round).items()}
        known = predictions(client)
        dropped = {
            name: pruning.top(layer.values.detach().cpu(), counts[name], order="smallest_magnitude")
            for name, layer in sparse_layers(client.model).items()
        }
        thinned = Topology({name: pattern.exchanged(dropped[name], _NONE) for name, pattern in full.items()})
        client.adopt(thinned)
        forgotten = self.forgotten(client, known)
        # Twice as many as grow, for up to half of them may be the dropped ones.
        top = client.top_pruned_gradients({name: 2 * a for name, a in counts.items()}, samples=forgotten)
        client.adopt(Topology({name: _regrown(thinned[name], full[name], found) for name, found in top.items()}))
        client.sgd(epochs=after, samples=forgotten if self.only_forgotten else None)
        return {}

    def forgotten(self, client: Client, known: Tensor) -> Tensor | None:
        """Positions of the samples whose prediction is no longer the known one; None where they are too few."""
        changed = predictions(client) != known
        if self.only_correct:
            changed &= known == client.data.y
        found = changed.nonzero().squeeze(1)
        return found if len(found) >= _FEWEST else None


def predictions(client: Client) -> Tensor:
    """Most likely label of each of the client's samples, `(n,)` int64, in evaluation mode."""
    device = next(client.model.parameters()).device
    client.model.eval()
    with torch.no_grad():
        parts = torch.arange(len(client.data)).split(_CHUNK)
        return torch.cat([client.model(client.data.batch(part)[0].to(device)).argmax(1).cpu() for part in parts])


def _regrown(thinned: Pattern, full: Pattern, found: SparseVector) -> Pattern:
    """`thinned`, as large as `full` again by the positions of largest |gradient| that `full` does not keep."""
    fresh = ~torch.isin(found.indices, full.flat.cpu())
    best = pruning.top(found.values[fresh], full.nnz - thinned.nnz, order="largest_magnitude")
    return thinned.exchanged(_NONE, found.indices[fresh][best])
