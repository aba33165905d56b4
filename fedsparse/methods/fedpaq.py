"""FedPAQ: federated averaging of quantised updates.

Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with Periodic Averaging and
Quantization", AISTATS 2020, arXiv:1909.13014. Evidence: abstract, and its row in a table of FedRTS (8 bits).

Deviations: a tensor's grid spans its largest magnitude, not its Euclidean norm, so that all codes are used; rounding is
unbiased either way. Batch-norm statistics, where rounding could make a variance negative, and counters are uploaded
exactly. Downloads are not quantised, as in the paper's algorithm; the cost tables of FedRTS count 8 bits both ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from fedsparse.errors import ClientError
from fedsparse.methods import checks
from fedsparse.methods.aggregation import mean
from fedsparse.methods.base import DrawnMethod, register
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task
from fedsparse.nn import read_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.wire.payload import Quantized

__all__ = ["FedPAQ", "quantised", "restored"]

_CODES = {8: torch.int8, 16: torch.int16}


@register
@dataclass(frozen=True, kw_only=True)
class FedPAQ(DrawnMethod):
    """Clients upload Q(W_k - W), the server adds their mean to W. At densities below 1, on a fixed mask.

    Attributes:
        bits: of a code, 8 or 16.
        score: what the mask keeps, `magnitude` of the initial weights or `random` positions; at density 1 all.
    """

    name: ClassVar[str] = "fedpaq"
    weights_back: ClassVar[bool] = False
    density: float = 1.0
    bits: int = 8
    score: str = "magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("bits", self.bits in _CODES, "8 or 16")

    def start(self, server: Server) -> Weights:
        if self.density == 1:
            return server.weights
        return super().start(server)

    def costs(self, topology: Topology, round: int) -> CostRow:
        """Downloads and uploads at `bits`, as FedRTS's tables count this method."""
        return CostRow(value_bits=self.bits)

    @client_task
    def train(self, client: Client) -> Extras:
        before = read_weights(client.model)
        client.sgd()
        trained = {name for name, _ in client.model.named_parameters()} | before.values.keys()
        return quantised(
            before, read_weights(client.model), trained, dtype=_CODES[self.bits], generator=client.rng("rounding")
        )

    def check(self, sent: Download, update: Update) -> None:
        assert sent.weights is not None
        tensors = dict(sent.weights.items())
        differences, exact = (checks.extra(update.extras, name, dict) for name in ("differences", "exact"))
        checks.names({**differences, **exact}, list(tensors), "tensors")
        for name, tensor in tensors.items():
            if name in exact:
                found, dtype = checks.extra(exact, name, Tensor), tensor.dtype
            else:
                found, dtype = checks.extra(differences, name, Quantized).codes, _CODES[self.bits]
            if (found.shape, found.dtype) != (tensor.shape, dtype):
                raise ClientError(
                    f"the upload's {name!r} is {found.dtype} {tuple(found.shape)}; "
                    f"expected {dtype} {tuple(tensor.shape)}"
                )

    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """W + sum_k p_k Q(W_k - W)."""
        return mean(updates, lambda update: restored(server.weights, update.extras))


def quantised(
    before: Weights, after: Weights, names: set[str], *, dtype: torch.dtype, generator: torch.Generator
) -> Extras:
    """How training changed weights of one topology: quantised differences of `names`, all other tensors as they are.

    The generator draws for one tensor after the other, in the order of `before`.
    """
    trained = dict(after.items())
    differences = {
        name: Quantized.of(trained[name] - tensor, dtype, generator) for name, tensor in before.items() if name in names
    }
    return {"differences": differences, "exact": {name: t for name, t in trained.items() if name not in names}}


def restored(before: Weights, extras: Extras) -> Weights:
    """The weights after training, up to rounding, from what `quantised` made of them."""
    differences = cast(Mapping[str, Quantized], extras["differences"])
    exact = cast(Mapping[str, Tensor], extras["exact"])

    def after(name: str, tensor: Tensor) -> Tensor:
        if name in exact:
            return exact[name]
        return (tensor.double() + differences[name].numbers()).to(tensor.dtype)

    values = {name: after(name, tensor) for name, tensor in before.values.items()}
    return Weights(before.topology, values, {name: after(name, tensor) for name, tensor in before.dense.items()})
