"""Selection of a free size: positions are kept as long as they raise what is gained per cost."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsparse.errors import PatternError

__all__ = ["by_gain"]


def by_gain(
    cores: Mapping[str, Tensor],
    gains: Mapping[str, Tensor],
    costs: Mapping[str, float],
    *,
    base: tuple[float, float],
    limit: int,
    sizes: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Bool masks that hold the cores and, of all other positions, those that raise total gain / total cost.

    With D and T the totals so far, a position of gain z and cost t is taken when z / t > D / T; highest z / t first,
    until one is not taken or `limit` positions are kept. No other set that holds the cores has a larger ratio, and the
    scale of the gains does not matter. Ties go to the earlier weight and then to the lower position. In float64.

    Args:
        cores: bool mask per weight of what is kept anyhow, however many these are.
        gains: of each position, from 0 up, shaped like the masks.
        costs: of one position of each weight, above 0.
        base: gain and cost that come on top, whatever is kept.
        limit: most positions to keep in all.
        sizes: positions of each entry, where these stand for units, shaped like the masks; a unit's gain is all of it.

    Raises:
        PatternError: names disagree, a cost is not above 0, or a gain is below 0 or NaN.
    """
    if not cores.keys() == gains.keys() == costs.keys():
        raise PatternError(
            f"masks are given for {sorted(cores)}, gains for {sorted(gains)}, costs for {sorted(costs)}; "
            "names must agree"
        )
    if not all(cost > 0 for cost in costs.values()):
        raise PatternError(f"every cost must be above 0, got {dict(costs)}")
    kept = torch.cat([cores[name].reshape(-1) for name in cores])
    gain = torch.cat([gains[name].reshape(-1).double() for name in cores])
    if sizes is None:
        sizes = {name: torch.ones_like(core, dtype=torch.int64) for name, core in cores.items()}
    size = torch.cat([sizes[name].reshape(-1) for name in cores])
    cost = torch.cat([costs[name] * sizes[name].reshape(-1).double() for name in cores])
    if not bool((gain >= 0).all()):
        raise PatternError("every gain must be a number of at least 0")
    order = torch.sort(gain / cost, descending=True, stable=True).indices
    order = order[~kept[order]]
    z, t = gain[order], cost[order]
    gained = base[0] + gain[kept].sum() + z.cumsum(0) - z
    spent = base[1] + cost[kept].sum() + t.cumsum(0) - t
    fits = int(size[kept].sum()) + size[order].cumsum(0) <= limit
    taken = int(((z * spent > gained * t) & fits).long().cumprod(0).sum())
    kept[order[:taken]] = True
    parts = kept.split([core.numel() for core in cores.values()])
    return {name: part.view(cores[name].shape) for name, part in zip(cores, parts, strict=True)}
