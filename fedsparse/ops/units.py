"""The pruned units of largest gradient, in chunks of rows of the dense gradient: by the CPU kernels or by torch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse import backends
from fedsparse.backends.cpu import CpuBackend
from fedsparse.ops.products import read_case, weight_gradient
from fedsparse.pattern import Pattern, Tiling

__all__ = ["topk_pruned_units"]

# Positions whose gradients are computed at a time.
_CHUNK = 1 << 18


def topk_pruned_units(
    grad: Tensor,
    x: Tensor,
    k: int,
    tiling: Tiling,
    index: Sequence[Tensor],
    shape: Sequence[int],
    geometry: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Flat positions and signed gradients of the best pruned units that have at most `k` positions in all.

    Units come by falling root mean square of their gradients, ties by number; from the first that does not fit, none is
    taken. Positions of a unit ascend. Memory is O(k) beside one chunk of rows, which are those of whole units.

    Args:
        grad, x: gradient of the product's output, and its input.
        tiling: the units, each wholly kept or wholly pruned.
        index, shape, geometry, backend: as of `ops.product`.
    """
    case = read_case(x, shape, index[1].numel(), geometry)
    pattern = Pattern.from_index(case.shape, index)
    engine = backends.backend(backend, case, pattern)
    k = min(k, pattern.size - pattern.nnz)
    if isinstance(engine, CpuBackend):
        return engine.topk_pruned_units(grad.contiguous(), x.contiguous(), pattern, k, tiling.tile, case)
    return _in_chunks(grad, x, k, tiling, index, shape, geometry)


def _in_chunks(
    grad: Tensor,
    x: Tensor,
    k: int,
    tiling: Tiling,
    index: Sequence[Tensor],
    shape: Sequence[int],
    geometry: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The units with torch's dense products, on any device and in any dtype."""
    rows, columns, high = shape[0], math.prod(shape[1:]), tiling.tile[0]
    step = max(1, max(_CHUNK, k) // (columns * high)) * high
    units, scores = grad.new_empty(0, dtype=torch.int64), grad.new_empty(0, dtype=torch.float64)
    owners, positions, gradients = units, units, grad.new_empty(0)
    floor = -math.inf  # what a later unit must exceed: it loses ties
    for first in range(0, rows, step):
        last = min(first + step, rows)
        chunk = Tiling((last - first, *tiling.axes[1:]), (min(high, last - first), *tiling.tile[1:]))
        before = first // high * tiling.grid[1] * tiling.grid[2]  # units of the rows above
        dense = _gradient_of_rows(grad, x, first, last, shape, geometry).reshape(-1)
        pruned = _pruned_units(chunk, first, last, columns, index)
        squares = chunk.sums(dense.double().square()) / chunk.sizes().to(grad.device)
        fresh = pruned[~(squares[pruned] <= floor)]
        here = chunk.positions(fresh)
        units, scores = torch.cat([units, fresh + before]), torch.cat([scores, squares[fresh]])
        owners = torch.cat([owners, chunk.of(here) + before])
        positions, gradients = torch.cat([positions, here + first * columns]), torch.cat([gradients, dense[here]])
        best, full = _best(scores, tiling.sizes(units), k)
        floor = float(scores[best[-1]]) if full else floor
        best = best.sort().values
        stay = torch.isin(owners, units[best])
        units, scores = units[best], scores[best]
        owners, positions, gradients = owners[stay], positions[stay], gradients[stay]
    best, _ = _best(scores, tiling.sizes(units), k)
    best = best[tiling.sizes(units[best]).cumsum(0) <= k]
    rank = torch.full_like(units, len(units)).index_copy_(0, best, torch.arange(len(best), device=units.device))
    rank_of_position = rank[torch.searchsorted(units, owners)]
    order = rank_of_position.sort(stable=True).indices[: int((rank_of_position < len(units)).sum())]
    return positions[order], gradients[order]


def _best(scores: Tensor, sizes: Tensor, k: int) -> tuple[Tensor, bool]:
    """The fewest highest scores with `k` positions or more, highest first, and whether there are so many.

    Later chunks leave no other one a chance.
    """
    order = scores.sort(descending=True, stable=True).indices
    used = sizes[order].cumsum(0)
    best = order[used - sizes[order] < k]
    return best, len(best) > 0 and int(used[len(best) - 1]) >= k


def _pruned_units(chunk: Tiling, first: int, last: int, columns: int, index: Sequence[Tensor]) -> Tensor:
    """Units of rows [first, last) that are pruned, numbered within these rows, ascending."""
    row_start, column = index[0].to(torch.int64), index[1]
    begin, end = int(row_start[first]), int(row_start[last])
    counts = row_start[first + 1 : last + 1] - row_start[first:last]
    row = torch.repeat_interleave(torch.arange(last - first, device=counts.device), counts)
    free = torch.ones(chunk.count, dtype=torch.bool, device=column.device)
    free[chunk.of(row * columns + column[begin:end].to(torch.int64))] = False
    return free.nonzero().squeeze(1)


def _gradient_of_rows(
    grad: Tensor, x: Tensor, first: int, last: int, shape: Sequence[int], geometry: Sequence[int]
) -> Tensor:
    """dL/dW of rows [first, last), which may lie in several groups of a convolution."""
    if not geometry:
        return weight_gradient(grad[:, first:last], x, (last - first, *shape[1:]), geometry)
    *moves, groups = geometry
    rows, inputs, parts = shape[0] // groups, shape[1], []
    for group in range(first // rows, (last - 1) // rows + 1):
        here, end = max(first, group * rows), min(last, (group + 1) * rows)
        part = x[:, group * inputs : (group + 1) * inputs]
        parts.append(weight_gradient(grad[:, here:end], part, (end - here, *shape[1:]), (*moves, 1)))
    return torch.cat(parts)
