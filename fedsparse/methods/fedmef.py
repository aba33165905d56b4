"""FedMef: FedTiny's adjustment with less to lose in it and less to remember in training.

Huang et al., "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024, arXiv:2403.14737; equation
numbers are the paper's. Evidence: penalty weight, rate rule and schedule come from secondary sources that quote it,
normalised convolutions and activation pruning from the authors' development code; the paper's text was not at hand.

Deviations: extrusion takes the whole local training of an adjusting round; in the code it spreads over the rounds
before, with the norm instead of its square as the penalty. `run` has no schedule of rates, so the rule for them acts
with `peak_lr` only. Convolutions keep their own biases, if they have any, and get none for those of the batch norms.
Upstream faults avoided: marks that fall on pruned weights, extrusion in every round, a rate that is never restored.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fedsparse import pruning
from fedsparse.methods import regrow
from fedsparse.methods.base import DrawnMethod, register
from fedsparse.methods.roles import Client, Extras, Server, Update, client_task
from fedsparse.nn import GAMMA, prune_activations, sparse_layers, topology, without_batch_norm
from fedsparse.pattern import Pattern, Topology, Weights

__all__ = ["FedMef", "extrusion_rate"]

_DROPS = ("magnitude", "marked")
_MARKED, _OVERLAP = "marked", "overlap"


@register
@dataclass(frozen=True, kw_only=True)
class FedMef(DrawnMethod, regrow.AskingMethod):
    """Weights about to be dropped are drained first; the largest activations alone are kept for the backward pass.

    Records of adjusting rounds have `marked_overlap`: the share of the a_l swaps that dropped a drained weight.

    Attributes:
        penalty: lambda of Eq. 2, times the sum of the squares of the marked weights; 0 is none.
        peak_lr: eta_0 of Eqs. 3-5, the rate with which marked weights of large norm are drained; None leaves the
            run's rate alone, as does any that is not above it.
        drop: after the round, the smallest averaged weights by `magnitude`, or exactly the `marked` ones; with `nm`,
            first of all the marked ones of each run in which a weight grows.
        norm_free: whether batch norms give way to normalised convolutions, with new initial weights.
        gamma: factor of the normalised weights.
        keep: share of each sparse layer's input, over the whole batch, that its weight gradient sees, in (0, 1];
            None leaves activations alone.
    """

    name: ClassVar[str] = "fedmef"
    penalty: float = 1e-4
    peak_lr: float | None = None
    drop: str = "magnitude"
    norm_free: bool = True
    gamma: float = GAMMA
    keep: float | None = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("penalty", 0 <= self.penalty < math.inf, "a number of at least 0")
        self._require("peak_lr", self.peak_lr is None or 0 < self.peak_lr < math.inf, "a rate above 0, or nothing")
        self._require("drop", self.drop in _DROPS, f"one of {', '.join(_DROPS)}")
        self._require("gamma", 0 < self.gamma < math.inf, "a number above 0")
        self._require("keep", self.keep is None or 0 < self.keep <= 1, "a share in (0, 1], or nothing")

    def build(self, model: nn.Module) -> nn.Module:
        return without_batch_norm(model, gamma=self.gamma) if self.norm_free else model

    # ---- clients
    @client_task
    def train(self, client: Client) -> Extras:
        if self.keep is not None:
            prune_activations(client.model, self.keep, rule="global")
        counts = regrow.asked(client.extras)
        if counts is None or not any(counts.values()):
            client.sgd()
        else:
            self.extrude(client, counts)
        return regrow.propose(client)

    def extrude(self, client: Client, counts: Mapping[str, int]) -> None:
        """Training that drains the marked weights: the lowest |w| of each layer as it was downloaded."""
        layers = sparse_layers(client.model)
        values = {name: layers[name].values for name in counts}
        low_places = lowest(topology(client.model), values, counts)
        marked = {name: places.to(values[name].device) for name, places in low_places.items()}

        def low() -> Tensor:
            return torch.cat([values[name][places] for name, places in marked.items()])

        def rate(step: int, steps: int, scheduled: float) -> float:
            peak = scheduled if self.peak_lr is None else self.peak_lr
            return extrusion_rate(scheduled, peak, norm=float(low().detach().norm()), step=step, steps=steps)

        client.sgd(
            penalty=(lambda _: self.penalty * low().square().sum()) if self.penalty else None,
            learning_rate=None if self.peak_lr is None else rate,
        )

    # ---- server
    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """The mean; before an adjustment, also notes what the clients have marked, which follows from what was sent."""
        if self.adjusts(server.round):
            counts = self.swap_counts(server.weights.topology, server.round)
            server.memory[_MARKED] = lowest(server.weights.topology, server.weights.values, counts)
        return super().aggregate(server, updates)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """Per layer: drop the a_l smallest |w| or marked weights, grow the a_l largest mean gradients that arrived."""
        server.memory.pop(_OVERLAP, None)
        if not self.adjusts(server.round):
            return None
        weights, marked = server.weights, cast(Mapping[str, Tensor], server.memory.pop(_MARKED))
        ranked = weights
        if self.drop == "marked":
            ranked = replace(weights, values={n: _first(values, marked[n]) for n, values in weights.values.items()})
        counts = self.swap_counts(weights.topology, server.round)
        new = regrow.regrown(ranked, updates, counts)
        if any(counts.values()):
            hits = sum(_dropped(weights, new, name, marked[name]) for name in marked)
            server.memory[_OVERLAP] = hits / sum(counts.values())
        return new

    def metrics(self, server: Server) -> Mapping[str, float | None]:
        return {"marked_overlap": cast(float | None, server.memory.get(_OVERLAP))}


def extrusion_rate(scheduled: float, peak: float, *, norm: float, step: int, steps: int) -> float:
    """mu_j = max(eta_j, beta_j), beta_j = p(j) (2 sigmoid(norm) - 1) eta_0, p(j) = (2 T - 2 j) / (2 T - j): Eqs. 3-5.

    Args:
        scheduled: eta_j, the rate that this step would have otherwise.
        peak: eta_0.
        norm: L2 norm of all marked weights now.
        step: j, from 0.
        steps: T, the budget.
    """
    profile = (2 * steps - 2 * step) / (2 * steps - step)
    return max(scheduled, profile * math.tanh(norm / 2) * peak)  # 2 sigmoid(x) - 1 = tanh(x / 2)


def lowest(topology: Topology, values: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Per weight, which of its values are the `counts[name]` smallest in magnitude, `(a_l,)` int64, in whole units."""
    return {name: _lowest(topology[name], values[name], count) for name, count in counts.items()}


def _lowest(pattern: Pattern, values: Tensor, count: int) -> Tensor:
    magnitudes = pruning.magnitudes(pattern, values)
    units = min(pruning.whole(count, pattern.granularity.tiling(pattern.shape).size), len(magnitudes))
    return pruning.places_of(pattern, pruning.top(magnitudes, units, order="smallest_magnitude"))


def _first(values: Tensor, marked: Tensor) -> Tensor:
    """Values by whose magnitude the marked ones come first."""
    return torch.full_like(values, torch.inf).index_copy_(0, marked, values[marked])


def _dropped(weights: Weights, after: Topology, name: str, marked: Tensor) -> int:
    """How many of the marked values the new topology drops."""
    flat = weights.topology[name].flat[marked]
    return int((~after[name].mask().flatten()[flat]).sum())
