"""Small dense: federated averaging of a narrow dense network, the baseline that asks what sparsity is worth.

A comparison in FedTiny (Huang et al., ICDCS 2023, arXiv:2212.01977) and FedRTS. Evidence: the FedTiny authors'
development code, which scales channels by the square root of the density.

Deviation: the share of channels is searched for, since its square is the density only where every layer is hidden on
both sides: of all widths, the network is the widest that has no more parameters than a sparse one of this density
would keep. GPT-2 keeps its heads, with fewer channels each. Metrics speak of the narrow network, whose own density is
1; dense traffic is that of the full one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from fedsparse.errors import InfeasibleDensityError
from fedsparse.methods.base import Method, register
from fedsparse.pruning.rounding import floor_share

__all__ = ["SmallDense"]

_HALVINGS = 24  # of (0, 1]; layers would need 2,900 channels for two widths to lie closer together


@register
@dataclass(frozen=True, kw_only=True)
class SmallDense(Method):
    """FedAvg on a network of about `density` times the parameters.

    Attributes:
        density: most parameters of the network, as a share of the full one's, in (0, 1].
    """

    name: ClassVar[str] = "small_dense"
    density: float = 0.1

    def __post_init__(self) -> None:
        self._require("density", 0 < self.density <= 1, "a share in (0, 1]")

    def width(self, parameters: Callable[[float], int]) -> float:
        """By bisection: the parameters grow with the share of channels, in steps of one channel or one a head."""
        full = parameters(1.0)
        most = floor_share(self.density, full)
        if most >= full:
            return 1.0
        fits, too_wide = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (fits + too_wide) / 2
            fits, too_wide = (middle, too_wide) if parameters(middle) <= most else (fits, middle)
        if not fits:
            fewest = parameters(too_wide)
            raise InfeasibleDensityError(
                f"small_dense: the narrowest network makes {fewest} parameters, density {self.density} of {full} is "
                f"{most}; raise the density to {fewest / full:.4g} or more",
                smallest=fewest / full,
            )
        return fits
