"""FedUST: FedDST that grows, and goes on, with the samples that pruning made the network forget.

From the FedPruning library; no paper was found, so its code is the only evidence.

Deviations: predictions are made in evaluation mode, where the code lets batch norm see the samples twice; a dropped
weight cannot come straight back; the server averages each position over the clients that keep it and otherwise does
as `feddst`, whose deviations hold here too. The code's accuracy threshold has no effect there and none here. Of units
in several pools (see `fedsparse.pattern.granularity`) gradients of all pruned weights are looked at, not of twice as
many as grow, so that every pool finds its own.
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
        counts, layers = self.swap_counts(full, client.round), sparse_layers(client.model)
        known = predictions(client)
        thinned = Topology({name: _thinned(p, layers[name].values, counts[name]) for name, p in full.items()})
        client.adopt(thinned)
        forgotten = self.forgotten(client, known)
        wanted = {name: _wanted(thinned[name], full[name]) for name in full}
        top = client.top_pruned_gradients(wanted, samples=forgotten)
        regrown = {n: pruning.refilled(thinned[n], full[n], t.indices, t.values) for n, t in top.items()}
        client.adopt(Topology(regrown))
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


def _thinned(pattern: Pattern, values: Tensor, count: int) -> Pattern:
    """`pattern` without `count` of its smallest weights, in whole units."""
    units = pruning.whole(count, pattern.granularity.tiling(pattern.shape).size)
    dropped = pruning.replaceable(pattern, -pruning.magnitudes(pattern, values), units)
    return pattern.exchanged(pruning.places_of(pattern, dropped), _NONE)


def _wanted(thinned: Pattern, full: Pattern) -> int:
    """Gradients among which enough are of weights that `full` prunes."""
    if full.granularity.pools(full.shape) > 1 and thinned.nnz < full.nnz:
        return thinned.size - thinned.nnz
    return 2 * (full.nnz - thinned.nnz)  # up to half of them may be the dropped ones
