"""FedRandPrune: every client of every round trains a random part of a dense model.

From the FedPruning code base, without a paper; a baseline for methods that hand out sub-models. Evidence: its
development branch, whose random masks cannot be drawn as shipped.

Deviations: the global model stays dense and is evaluated dense, where that code evaluates under one more random mask
unless told otherwise; a client that comes again gets a new mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedsparse.methods.aggregation import masked_mean
from fedsparse.methods.base import SparseMethod, register
from fedsparse.methods.roles import Download, Server, Update
from fedsparse.pattern import Weights

__all__ = ["FedRandPrune"]


@register
@dataclass(frozen=True, kw_only=True)
class FedRandPrune(SparseMethod):
    """Random masks of the given density, one a client and round; positions that nobody trained keep their value."""

    name: ClassVar[str] = "fedrandprune"

    def download(self, server: Server, client_id: int) -> Download:
        masks = self.initial_topology(server.model, "random", server.rng(f"mask of {client_id}"))
        return Download(server.weights.moved_to(masks))

    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """W_i = sum_k n_k m_ki W_ki / sum_k n_k m_ki, and the old W_i where the sum below is 0."""
        return masked_mean(updates, old=server.weights)
