"""Static pruning at initialisation: a mask is drawn before the first round and never changes.

The baseline that isolates what moving a mask is worth; called FedInitPrune in FedPruning. Random masks with ERK
densities start the dynamic methods of Huang et al. (FedRTS, NeurIPS 2025, arXiv:2501.19122); magnitude masks of the
random initial weights are that code base's default.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedsparse.methods.base import START_SCORES, SparseMethod, register
from fedsparse.methods.roles import Server
from fedsparse.pattern import Weights

__all__ = ["Static"]


@register
@dataclass(frozen=True, kw_only=True)
class Static(SparseMethod):
    """FedAvg on a fixed sparse network.

    Attributes:
        score: what is kept: `magnitude` of the initial weights, or `random`.
    """

    name: ClassVar[str] = "static"
    score: str = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("score", self.score in START_SCORES, f"one of {', '.join(START_SCORES)}")

    def start(self, server: Server) -> Weights:
        return server.weights.moved_to(self.initial_topology(server.model, self.score, server.rng("mask")))
