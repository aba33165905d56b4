"""What is done with the gradient and the input of a product that were caught in the layout, without a conversion.

Every function gives None where it is asked for ordinary tensors: then that of `fedsparse.ops` is called for.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fedsparse.backends import Case
from fedsparse.backends.blocked import isa_of
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.term import Term
from fedsparse.blocked.nodes import operand, store
from fedsparse.blocked.tensor import Blocked
from fedsparse.ops.products import read_case
from fedsparse.pattern import Pattern, Tiling

__all__ = ["blocked_topk_pruned", "blocked_values_gradient"]


class _Caught(NamedTuple):
    grad: Tensor
    x: Term
    pattern: Pattern
    case: Case
    engine: CpuBackend


def _caught(grad: Tensor, x: Tensor, weight: Sequence[Any]) -> _Caught | None:
    """`weight` as of `ops.product`: index, shape, geometry and backend."""
    nodes = [t.node for t in (grad, x) if isinstance(t, Blocked)]
    if len(nodes) < 2 or nodes[0] is None or nodes[1] is None:
        return None
    index, shape, geometry, _ = weight
    pattern = Pattern.from_index(tuple(shape), index)
    case = read_case(x, shape, pattern.nnz, geometry)
    data, (_, term) = store(nodes[0], case.input[0]), operand(nodes[1], case.input[0])
    return _Caught(data, term, pattern, case, CpuBackend(isa_of(data.shape[-1])))


def blocked_topk_pruned(
    grad: Tensor,
    x: Tensor,
    k: int,
    weight: Sequence[Any],
    tiling: Tiling,
    lines: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """`ops.topk_pruned`, or `ops.topk_pruned_units` of larger tiles than single positions, with float32 gradients.

    Of `slope * gradient + offset` with `lines`, `(out,)` float32 each.
    """
    found = _caught(grad, x, weight)
    if found is None:
        return None
    grad, term, pattern, case, engine = found
    k = min(k, pattern.size - pattern.nnz)
    return engine.topk_pruned_blocked(grad, term, pattern, k, case, lines, tiling.tile)


def blocked_values_gradient(grad: Tensor, x: Tensor, values: Tensor, weight: Sequence[Any]) -> Tensor | None:
    """`ops.values_gradient`."""
    found = _caught(grad, x, weight)
    if found is None:
        return None
    grad, term, pattern, case, engine = found
    return engine.backward_blocked(grad, term, values.contiguous(), pattern, False, case).values
