"""Static pruning at initialisation: a mask is drawn before the first round and never changes.

The baseline that isolates what moving a mask is worth; called FedInitPrune in FedPruning. Random masks with ERK
densities start the dynamic methods of Huang et al. (FedRTS, NeurIPS 2025, arXiv:2501.19122); magnitude masks of the
random initial weights are that code base's default. SNIP (Lee et al., ICLR 2019), GraSP (Wang et al., ICLR 2020) and
SynFlow (Tanaka et al., NeurIPS 2020) are baselines of FedTiny and FedMef; scope and steps default to those of their
own papers. Evidence: papers and the FedTiny authors' development code.

Deviations: SNIP and GraSP see samples of the server's public data, where that code takes them from the test set;
nothing is trained before pruning; in every scope a layer keeps at least one weight.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsparse import pruning
from fedsparse.data import Dataset
from fedsparse.errors import MethodError
from fedsparse.methods.base import START_SCORES, SparseMethod, register
from fedsparse.methods.roles import Server
from fedsparse.pattern import Weights
from fedsparse.pruning.schedule import COURSES

__all__ = ["Static", "few_of_each_class"]

_BATCH = 64  # samples scored at a time, as many as fit a small device

_GRADIENT_SCORES = {"grasp": pruning.grasp, "snip": pruning.snip}
_ITERATIONS = {"grasp": 1, "snip": 1, "synflow": 100}  # of the papers


@register
@dataclass(frozen=True, kw_only=True)
class Static(SparseMethod):
    """FedAvg on a fixed sparse network.

    Attributes:
        score: what is kept: `magnitude` of the initial weights, `random` ones, or the highest `snip`, `grasp` or
            `synflow` scores.
        scope: `layer` ranks within each layer, whose counts follow `distribution`; `global` ranks over all layers.
            None is global for snip, grasp and synflow, and what `distribution` says for the others.
        iterations: pruning steps of snip, grasp and synflow, each with new scores; None is 100 for synflow and 1,
            pruning at a stroke, for the others.
        course: how density falls over the steps: `exponential` or `linear`.
        shots: samples of each class of the server's public data that snip and grasp see.
    """

    name: ClassVar[str] = "static"
    score: str = "magnitude"
    scope: str | None = None
    iterations: int | None = None
    course: str = "exponential"
    shots: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*START_SCORES, *_ITERATIONS)
        self._require("score", self.score in known, f"one of {', '.join(known)}")
        self._require("scope", self.scope in ("layer", "global", None), "layer or global, or nothing")
        contradiction = self.scope == "layer" and self.distribution == "global"
        self._require("scope", not contradiction, "global, or a distribution of erk, er or uniform")
        self._require("iterations", self.iterations is None or self.iterations >= 1, "at least 1, or nothing")
        once = self.score in _ITERATIONS or self.iterations in (1, None)
        self._require("iterations", once, f"1: {self.score} scores do not change between steps")
        steps = 1 if self.unit.share is None else self.iterations or _ITERATIONS.get(self.score, 1)
        self._require("iterations", steps == 1, f"1: granularity {self.granularity!r} allows no densities in between")
        self._require("course", self.course in COURSES, f"one of {', '.join(COURSES)}")
        self._require("shots", self.shots >= 1, "at least 1")

    def start(self, server: Server) -> Weights:
        model, distribution = server.model, self.chosen_distribution
        score: str | Mapping[str, Tensor] = self.score
        if self.score in _ITERATIONS:
            path = pruning.density_path(self.density, self.iterations or _ITERATIONS[self.score], self.course)
            scorer = self._scorer(server)
            score = pruning.gradually(
                model, scorer, path, distribution=distribution, exclude=self.exclude, granularity=self.unit
            )
        topology = self.initial_topology(model, score, server.rng("mask"), distribution=distribution)
        return server.weights.moved_to(topology)

    @property
    def chosen_distribution(self) -> str:
        """`global`, or how layers share the density where weights are ranked within each."""
        if self.scope is None:
            return "global" if self.score in _ITERATIONS else self.distribution
        return "global" if self.scope == "global" else self.distribution

    def _scorer(self, server: Server) -> Callable[[nn.Module], Mapping[str, Tensor]]:
        data = server.public_data
        if self.score not in _GRADIENT_SCORES:
            return partial(pruning.synflow, sample_shape=server.sample_shape)
        samples = few_of_each_class(data, self.shots, server.rng("shots")) if data is not None else torch.empty(0)
        if data is None or len(samples) < 2:
            raise MethodError(
                f"{self.name}: {self.score} scores need two samples of the server or more, it has {len(samples)}; "
                "raise data.public_share or shots"
            )
        # In equal parts, so that no batch is left with a single sample.
        batches = [data.batch(part) for part in samples.tensor_split(math.ceil(len(samples) / _BATCH))]
        return partial(_GRADIENT_SCORES[self.score], batches=batches)


def few_of_each_class(data: Dataset, shots: int, generator: torch.Generator) -> Tensor:
    """Positions `(k,)` int64 of up to `shots` random samples of each class, in random order."""
    order = torch.randperm(len(data), generator=generator)
    labels = data.y[order]
    chosen = [(labels == label).nonzero().squeeze(1)[:shots] for label in range(data.num_classes)]
    return order[torch.cat(chosen).sort().values]
