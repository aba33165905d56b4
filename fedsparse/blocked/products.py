"""Products of blocked activations with sparse weights."""

from collections.abc import Sequence

from torch import Tensor

from fedsparse import backends
from fedsparse.backends.cpu import CpuBackend, Term
from fedsparse.blocked.functions import Enter, Product, apply
from fedsparse.blocked.nodes import Stored, operand
from fedsparse.blocked.region import inside
from fedsparse.blocked.tensor import Blocked, plain
from fedsparse.ops.products import check_parameters, read_case, remembered_case
from fedsparse.pattern import Pattern

__all__ = ["blocked_product"]


def blocked_product(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Sequence[int], backend: str
) -> Blocked | None:
    """The product as `ops.product` computes it, blocked; None where an ordinary tensor is called for.

    That is outside a network that keeps its activations blocked, and where other than the cpu kernels are chosen.
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
    if node is None:
        x = plain(x)
        check_parameters(x, values, bias, pattern.index, pattern.shape[0])
        data = apply(Enter, x, engine.isa)
        term = Term(data.detach())
    else:
        data, term = operand(node, case.input[0])
        check_parameters(data, values, bias, pattern.index, pattern.shape[0])
    bias = None if bias is None else bias.contiguous()
    y = apply(Product, data, values.contiguous(), bias, term, pattern, case, engine)
    return Blocked(Stored(y), case.output)
