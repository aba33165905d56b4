"""Products of blocked activations with sparse weights."""

from collections.abc import Sequence

from torch import Tensor

from fedsparse import backends
from fedsparse.backends.activation import Pruning
from fedsparse.backends.cpu import CpuBackend
from fedsparse.blocked.functions import Enter, Product, apply
from fedsparse.blocked.history import check
from fedsparse.blocked.nodes import Stored, form, operand
from fedsparse.blocked.region import inside
from fedsparse.blocked.tensor import Blocked, plain
from fedsparse.blocked.trace import current
from fedsparse.ops.products import check_parameters, read_case, remembered_case
from fedsparse.pattern import Pattern

__all__ = ["blocked_product"]


def blocked_product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    geometry: Sequence[int],
    backend: str,
    pruning: Pruning | None = None,
) -> Blocked | None:
    """The product as `ops.product` computes it, blocked; None where an ordinary tensor is called for.

    That is outside a network that keeps its activations blocked, and where other than the cpu kernels are chosen.
    With `pruning` the values' gradient is that of the pruned input.
    """
    if not inside():
        return None
    node = x.node if isinstance(x, Blocked) else None
    if isinstance(x, Blocked):
        case = remembered_case(pattern.shape, x.sizes, values.numel(), tuple(geometry))
    else:
        case = read_case(x, pattern.shape, values.numel(), geometry)
    engine = backends.backend(backend, case, blocked=True)
    if not isinstance(engine, CpuBackend):
        return None
    batch = case.input[0]
    entered = node is None
    if node is None:
        x = plain(x)
        check_parameters(x, values, bias, pattern.index, pattern.shape[0])
        node = Stored(apply(Enter, x, engine.isa))
        data, term = operand(node, batch)
    else:
        check(node)
        data, term = operand(node, batch)
        check_parameters(data, values, bias, pattern.index, pattern.shape[0])
    trace = current()
    if trace is not None:
        trace.product(case, enters=entered)
    saved = term if pruning is None else form(node, term, batch, pruning)
    bias = None if bias is None else bias.contiguous()
    y = apply(Product, data, values.contiguous(), bias, term, saved, pattern, case, engine)
    return Blocked(Stored(y), case.output)
