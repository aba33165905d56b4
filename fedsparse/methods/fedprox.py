"""FedProx: local training held near the global model.  Li et al., MLSys 2020, arXiv:1812.06127.

Evidence: the local objective as published. Deviations: every client runs all local epochs, where the paper lets slow
ones stop early; the cohort is drawn uniformly and averaged by samples, as in FedAvg, where the paper draws by samples
and averages uniformly; clients have momentum if the run gives it to them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsparse.methods.base import Method, register
from fedsparse.methods.roles import Client, Extras, Penalty, client_task

__all__ = ["FedProx"]


@register
@dataclass(frozen=True, kw_only=True)
class FedProx(Method):
    """Federated averaging whose clients minimise L(W) + mu / 2 ||W - W_global||^2 (Eq. 2).

    Attributes:
        mu: weight of the proximal term; 0 is federated averaging.
    """

    name: ClassVar[str] = "fedprox"
    mu: float = 0.01

    def __post_init__(self) -> None:
        self._require("mu", 0 <= self.mu < float("inf"), "a number of at least 0")

    @client_task
    def train(self, client: Client) -> Extras:
        client.sgd(penalty=self.proximal_term(client.model) if self.mu else None)
        return {}

    def proximal_term(self, model: nn.Module) -> Penalty:
        """mu / 2 ||W - W_global||^2 over all trainable parameters, W_global being those of `model` now."""
        downloaded = [p.detach().clone() for p in model.parameters() if p.requires_grad]

        def term(model: nn.Module) -> Tensor:
            trained = (p for p in model.parameters() if p.requires_grad)
            parts = [(p - anchor).square().sum() for p, anchor in zip(trained, downloaded, strict=True)]
            return self.mu / 2 * torch.stack(parts).sum()

        return term
