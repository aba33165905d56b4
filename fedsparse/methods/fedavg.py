"""FedAvg: averaging of locally trained dense models.  McMahan et al., AISTATS 2017, arXiv:1602.05629.

The dense reference for accuracy and cost. Deviation from common code: clients of a round are drawn from a generator
of their own, derived from seed and round, not from a global one.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedsparse.methods.base import Method, register

__all__ = ["FedAvg"]


@register
@dataclass(frozen=True, kw_only=True)
class FedAvg(Method):
    """Local SGD on the whole network, then W = sum_k n_k W_k / sum_k n_k: the defaults of every hook."""

    name: ClassVar[str] = "fedavg"
