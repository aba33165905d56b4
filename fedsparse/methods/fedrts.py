"""FedRTS: sparse topology by combinatorial Thompson sampling.

Huang et al., "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", NeurIPS 2025, arXiv:2501.19122;
equation numbers are the paper's. Evidence: read in the paper, appendix included. From its code and secondary sources
come the outcome 1/2 of the aggregate for pruned weights, the constant of FedCUCB, and all of `two_step` and `reset`.

Deviations: shares p_k are over the clients of the round, not over all; clients look for candidates among pruned
weights (the printed algorithm multiplies gradients by the mask itself); no adjustment in round 0; a layer with nothing
to swap keeps its mask, where sampling could still exchange a weight. The running average of weights in the precursor
of `two_step` is left out. Arms are units of pruning: in larger ones than single weights, outcomes go by the root mean
square of a unit's weights and by the mean of its positions' votes. Upstream faults avoided: an aggregate written over
the first client's weights, whose votes then are the aggregate's; fusion weights the wrong way round; masks that never
change because of their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Generator, Tensor

from fedsparse import pruning
from fedsparse.methods import regrow
from fedsparse.methods.base import register
from fedsparse.methods.posterior import SCORES, Posterior
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task, weights_of
from fedsparse.pattern import Pattern, Tiling, Topology, Weights
from fedsparse.pruning import cosine_share, top
from fedsparse.pruning.rounding import floor_share
from fedsparse.wire.payload import IndexSet

__all__ = ["FedRTS", "core"]

_UNKNOWN = 0.5  # outcome of the aggregate for pruned weights: its gradients are taken to be too noisy to judge by
_MEMORY, _VOTES = "posterior", "votes"


@register
@dataclass(frozen=True, kw_only=True)
class FedRTS(regrow.AskingMethod):
    """A Beta posterior per unit, fed by votes of clients and aggregate; topologies are sampled from it.

    The paper's ablations are settings: without Thompson sampling is `score = "mean"`, `momentum = 0.9`,
    `aggregate_vote = 1`; FedCUCB is `score = "cucb"`; FedAdaPruning, its precursor in code, is `two_step` and `reset`.

    Attributes:
        aggregate_vote: gamma of Eq. 3: 1 trusts the averaged weights only, 0 the clients only.
        evidence: lambda of Eq. 6: pseudo-counts that an outcome adds.
        score: what the kept weights are the highest of: `thompson` samples, posterior `mean`, or `cucb` bounds.
        momentum: of outcomes that are averaged instead of counted; 0 counts.
        every_round: whether rounds without adjustment are observed too.
        two_step: exchange a_l weights a layer: the worst kept ones by the posterior for the best by this round's votes.
        reset: whether the posterior starts anew after each adjustment, at a_l / K_l instead of 1.
    """

    name: ClassVar[str] = "fedrts"
    aggregate_vote: float = 0.5
    evidence: float = 10.0
    score: str = "thompson"
    momentum: float = 0.0
    every_round: bool = True
    two_step: bool = False
    reset: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("aggregate_vote", 0 <= self.aggregate_vote <= 1, "a share in [0, 1]")
        self._require("evidence", self.evidence > 0, "a number above 0")
        self._require("score", self.score in SCORES, f"one of {', '.join(SCORES)}")
        self._require("momentum", 0 <= self.momentum < 1, "a share in [0, 1)")
        counted = self.score != "cucb" or not (self.momentum or self.reset)
        self._require("score", counted, "another one with momentum or reset: cucb counts outcomes from Beta(1, 1) on")

    def start(self, server: Server) -> Weights:
        weights = server.weights.moved_to(self.initial_topology(server.model, "random", server.rng("mask")))
        self._remember(server, {name: self._prior(p, 0) for name, p in weights.topology.items()})
        return weights

    @client_task
    def train(self, client: Client) -> Extras:
        client.sgd()
        counts = regrow.asked(client.extras)
        if counts is None:
            return {}
        found = client.top_pruned_gradients(counts)
        return {_VOTES: {name: IndexSet(vector.size, vector.indices) for name, vector in found.items()}}

    def check(self, sent: Download, update: Update) -> None:
        regrow.check(sent, update, name=_VOTES, kind=IndexSet)

    def costs(self, topology: Topology, round: int) -> CostRow:
        """As of all that ask, but the position alone of each candidate is uploaded."""
        row = super().costs(topology, round)
        return replace(row, numbers_up=row.buffer_bytes // 8)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """The posterior takes in this round's outcomes; in adjusting rounds, each layer's K_l best are kept."""
        adjusting = self.adjusts(server.round)
        if not (adjusting or self.every_round):
            return None
        topology = server.weights.topology
        swapped = self.swap_counts(topology, server.round) if adjusting else dict.fromkeys(topology, 0)
        posteriors, changed = self._remembered(server), {}
        generator = server.rng("posterior")
        cores, proposed = self._pooled(topology, updates, server.round, [name for name in topology if swapped[name]])
        for name, pattern in topology.items():
            kept = pruning.kept_units(pattern)
            outcomes = self._kept_outcomes(server.weights.values[name], pattern, cores[name], server.round)
            posterior = self._observed(posteriors[name], kept, outcomes)
            if swapped[name]:
                pruned, votes = _votes(proposed[name], pattern)
                outcomes = self.aggregate_vote * _UNKNOWN + (1 - self.aggregate_vote) * votes
                posterior = self._observed(posterior, pruned, outcomes)
                choose = self._exchanged if self.two_step else self._chosen
                count = _in_units(swapped[name], pattern)
                changed[name] = choose(posterior, pattern, votes, count, server.round, generator)
            posteriors[name] = self._prior(pattern, server.round) if adjusting and self.reset else posterior
        self._remember(server, posteriors)
        return topology.with_patterns(changed) if adjusting else None

    # ---- outcomes
    def _pooled(
        self, topology: Topology, updates: Sequence[Update], round: int, voted: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Shares of samples whose clients have a kept arm in their core, and whose clients propose a position.

        Returns:
            `(arms,)` float64 of each layer, and `(size,)` float64 of each layer that is voted on.
        """
        samples = sum(update.num_samples for update in updates)
        kappas = {name: self._kappa(pattern, round) for name, pattern in topology.items()}
        cores = {n: torch.zeros(len(pruning.kept_units(p)), dtype=torch.float64) for n, p in topology.items()}
        proposed = {name: torch.zeros(topology[name].size, dtype=torch.float64) for name in voted}
        for update in updates:
            weights, share = weights_of(update), update.num_samples / samples
            for name, pattern in topology.items():
                sent = pruning.magnitudes(pattern, weights.values[name])
                cores[name] += core(sent, kappas[name]) * share
            for name, positions in proposed.items():
                positions[cast(Mapping[str, IndexSet], update.extras[_VOTES])[name].indices] += share
        return cores, proposed

    def _kept_outcomes(self, values: Tensor, pattern: Pattern, clients: Tensor, round: int) -> Tensor:
        """X of kept arms, Eq. 3, `(arms,)`: whether they are of the core, by the aggregate and by each client."""
        own = core(pruning.magnitudes(pattern, values), self._kappa(pattern, round))
        return self.aggregate_vote * own + (1 - self.aggregate_vote) * clients

    def _kappa(self, pattern: Pattern, round: int) -> int:
        """kappa_l: arms of the core."""
        return len(pruning.kept_units(pattern)) - self._swapped(pattern, round)

    def _swapped(self, pattern: Pattern, round: int) -> int:
        """K_l - kappa_l: kept arms outside the core, however many are pruned."""
        share = cosine_share(self.swap_fraction, round, self.adjust_until)
        return min(_in_units(floor_share(share, pattern.nnz), pattern), len(pruning.kept_units(pattern)))

    # ---- choice
    def _chosen(
        self, posterior: Posterior, pattern: Pattern, _votes: Tensor, _count: int, round: int, generator: Generator
    ) -> Pattern:
        """The K_l arms of the highest score."""
        scores = SCORES[self.score](posterior, round, self.evidence, generator)
        return pruning.likewise(pattern, torch.arange(len(scores)), scores)

    def _exchanged(
        self, posterior: Posterior, pattern: Pattern, votes: Tensor, count: int, round: int, generator: Generator
    ) -> Pattern:
        """The kept arms without the `count` of lowest score, and as many of the other ones by their votes alone.

        A pruned arm starts at count / (pruned arms); votes add to alpha, having none to beta. One dropped just now has
        no votes. Each arm makes room for one of its own pool.
        """
        granularity, shape, kept = pattern.granularity, pattern.shape, pruning.kept_units(pattern)
        tiling = granularity.tiling(shape)
        mask = torch.zeros(tiling.count, dtype=torch.bool).index_fill_(0, kept, True)
        score = SCORES[self.score](posterior, round, self.evidence, generator)
        stay = top(score, max(0, len(kept) - count), among=mask)
        pruned = (~mask).nonzero().squeeze(1)
        everywhere = torch.zeros(tiling.count, dtype=torch.float64).index_copy_(0, pruned, votes)
        start = count / len(pruned)
        fresh = Posterior(
            (self.evidence * everywhere + start).float(), (self.evidence * (everywhere == 0).double() + start).float()
        )
        grow = SCORES[self.score](fresh, round, self.evidence, generator)
        free = torch.ones(tiling.count, dtype=torch.bool).index_fill_(0, stay, False).nonzero().squeeze(1)
        gone = torch.bincount(
            granularity.pool_of(shape, mask.index_fill(0, stay, False).nonzero().squeeze(1)),
            minlength=granularity.pools(shape),
        )
        grown = free[pruning.highest(grow[free], count, granularity.pool_of(shape, free), gone)]
        return Pattern.from_flat(shape, tiling.positions(torch.cat([stay, grown])), granularity)

    # ---- what is believed
    def _observed(self, posterior: Posterior, positions: Tensor, outcomes: Tensor) -> Posterior:
        if self.momentum:
            return posterior.averaged(positions, outcomes, self.momentum)
        return posterior.observed(positions, outcomes, self.evidence)

    def _prior(self, pattern: Pattern, round: int) -> Posterior:
        if self.momentum:
            return Posterior.even(_arms(pattern).count, 0.5)
        kept = len(pruning.kept_units(pattern))
        start = max(1, self._swapped(pattern, round)) / kept if self.reset else 1.0
        return Posterior.even(_arms(pattern).count, start)

    def _remembered(self, server: Server) -> dict[str, Posterior]:
        memory = cast(Mapping[str, Mapping[str, Tensor]], server.memory[_MEMORY])
        return {name: Posterior(m["alpha"], m["beta"]) for name, m in memory.items()}

    def _remember(self, server: Server, posteriors: Mapping[str, Posterior]) -> None:
        server.memory[_MEMORY] = {name: {"alpha": p.alpha, "beta": p.beta} for name, p in posteriors.items()}


def core(values: Tensor, kappa: int) -> Tensor:
    """h of the paper: 1 at the `kappa` entries of largest magnitude, else 0, `(n,)` float64; ties to the first ones."""
    return torch.zeros(values.numel(), dtype=torch.float64).index_fill_(
        0, top(values, kappa, order="largest_magnitude"), 1.0
    )


def _votes(proposed: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Pruned arms `(p,)` int64, and the share of samples whose clients propose each, `(p,)` float64."""
    arms = _arms(pattern)
    kept = torch.zeros(arms.count, dtype=torch.bool).index_fill_(0, pruning.kept_units(pattern), True)
    pruned = (~kept).nonzero().squeeze(1)
    return pruned, arms.sums(proposed)[pruned] / arms.sizes(pruned)


def _arms(pattern: Pattern) -> Tiling:
    return pattern.granularity.tiling(pattern.shape)


def _in_units(weights: int, pattern: Pattern) -> int:
    return pruning.whole(weights, _arms(pattern).size)
