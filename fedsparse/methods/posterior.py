"""Beta posteriors over outcomes in [0, 1], one for each unit of a weight: the arms of a combinatorial bandit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["SCORES", "Posterior"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is believed of the units of one weight: the outcome of each is Beta(alpha, beta).

    Attributes:
        alpha, beta: `(n,)` float32, above 0, in the order of the units; single weights are in that of flat positions.
    """

    alpha: Tensor
    beta: Tensor

    @classmethod
    def even(cls, size: int, count: float) -> "Posterior":
        """Nothing known of `size` positions: Beta(count, count)."""
        return cls(torch.full((size,), count), torch.full((size,), count))

    def observed(self, positions: Tensor, outcomes: Tensor, evidence: float) -> "Posterior":
        """After outcomes x: alpha + evidence * x and beta + evidence * (1 - x), at `positions` alone.

        Args:
            positions: `(k,)` int64, distinct.
            outcomes: `(k,)` in [0, 1].
            evidence: pseudo-counts that an outcome is worth.
        """
        return Posterior(
            self.alpha.index_add(0, positions, (evidence * outcomes).float()),
            self.beta.index_add(0, positions, (evidence * (1 - outcomes)).float()),
        )

    def averaged(self, positions: Tensor, outcomes: Tensor, momentum: float) -> "Posterior":
        """With outcomes averaged instead of counted: alpha to momentum * alpha + (1 - momentum) * x, beta alike.

        From Beta(1/2, 1/2) on, alpha + beta stays 1 and the mean is the running average. Arguments as `observed`.
        """
        alpha, beta = self.alpha.double(), self.beta.double()
        alpha[positions] = momentum * alpha[positions] + (1 - momentum) * outcomes.double()
        beta[positions] = momentum * beta[positions] + (1 - momentum) * (1 - outcomes.double())
        return Posterior(alpha.float(), beta.float())

    @property
    def mean(self) -> Tensor:
        """Expected outcomes, `(n,)` float64."""
        return self.alpha.double() / (self.alpha.double() + self.beta.double())

    def sample(self, generator: Generator) -> Tensor:
        """One draw of each outcome, `(n,)` float64 in [0, 1].

        As a ratio of gamma variates: torch's own Beta distribution takes no generator.
        """
        successes = torch._standard_gamma(self.alpha.double(), generator)
        failures = torch._standard_gamma(self.beta.double(), generator)
        return successes / (successes + failures)

    def upper_bound(self, round: int, evidence: float) -> Tensor:
        """mean + sqrt(3 ln t / (2 N)), t = round + 1 (Chen et al., ICML 2013, CUCB), `(n,)` float64.

        Of outcomes observed from Beta(1, 1) on with equal `evidence`: N is how many, the mean is theirs alone. A
        position without any is unbounded.
        """
        successes, failures = self.alpha.double() - 1, self.beta.double() - 1
        observations = (successes + failures) / evidence
        bound = successes / (successes + failures) + (1.5 * math.log(round + 1) / observations).sqrt()
        return torch.where(observations > 0, bound, math.inf)


# What arms are chosen by, from what is believed of them, the round, the evidence of an outcome and a generator.
SCORES: Mapping[str, Callable[[Posterior, int, float, Generator], Tensor]] = {
    "thompson": lambda posterior, _round, _evidence, generator: posterior.sample(generator),
    "mean": lambda posterior, _round, _evidence, _generator: posterior.mean,
    "cucb": lambda posterior, round, evidence, _generator: posterior.upper_bound(round, evidence),
}
