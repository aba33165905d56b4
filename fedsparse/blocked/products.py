"""Products of blocked activations with sparse weights."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsparse import backends
from fedsparse.backends import Case
from fedsparse.backends.activation import Pruning
from fedsparse.backends.cpu import CpuBackend
from fedsparse.backends.term import Term
from fedsparse.blocked.functions import CatchForm, Enter, Product, apply
from fedsparse.blocked.nodes import Activated, Stored, dtype_of, form, operand, store
from fedsparse.blocked.region import autocast, inside
from fedsparse.blocked.saving import Form, pruned_form, restored, unpruned
from fedsparse.blocked.tensor import Blocked, plain
from fedsparse.blocked.trace import current
from fedsparse.ops.held import Catch
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
    catch: Catch | None = None,
) -> Blocked | None:
    """The product as `ops.product` computes it, blocked; None where an ordinary tensor is called for.

    That is outside a network that keeps its activations blocked, and where other than the cpu kernels are chosen.
    With `pruning` the values' gradient is that of the pruned input. `catch` is called in the backward pass, before it
    computes anything, with blocked tensors: the gradient of the product and its whole input, pruned or not.
    Under autocast activations are stored as bfloat16; parameters are used as they are.
    """
    if not inside():
        return None
    node = x.node if isinstance(x, Blocked) else None
    if isinstance(x, Blocked) and node is not None:
        dtype = _cast(dtype_of(node))
        case = remembered_case(pattern.shape, x.sizes, values.numel(), tuple(geometry), dtype)
    else:
        x = plain(x)
        case = read_case(x, pattern.shape, values.numel(), geometry)
        if _cast(x.dtype) != x.dtype:
            case = replace(case, dtype=_cast(x.dtype))
    engine = backends.backend(backend, case, pattern, blocked=True)
    if not isinstance(engine, CpuBackend):
        return None
    batch = case.input[0]
    entered = node is None
    if node is None:
        node = Stored(apply(Enter, x.to(case.dtype), engine.isa))
    elif dtype_of(node) != case.dtype:
        node = Stored(store(node, batch).to(case.dtype))
    data, term = operand(node, batch)
    check_parameters(data, values, bias, pattern.index, pattern.shape[0], autocast=autocast() is not None)
    trace = current()
    if trace is not None:
        trace.product(case, enters=entered)
    show = None if catch is None else _showing(catch, case, pruning)
    saved: Form = term
    if pruning is not None:
        saved = form(node, term, batch, pruning if show is None else unpruned(pruning))
    bias = None if bias is None else bias.contiguous()
    y = apply(Product, data, values.contiguous(), bias, term, saved, pattern, case, engine, show)
    return Blocked(Stored(y), case.output)


def _showing(catch: Catch, case: Case, pruning: Pruning | None) -> CatchForm:
    """Catches for one product, whose input is pruned afterwards."""

    def show(grad: Tensor, form: Form) -> Form:
        whole = restored(form, case, grad.shape[-1])
        plainly = whole.scale is None and not whole.relu
        x = Stored(whole.data) if plainly else Activated(whole.data, whole)
        catch(Blocked(Stored(grad), case.output), Blocked(x, case.input))
        if pruning is None:
            return form
        return pruned_form(whole, form if isinstance(form, Term) else None, case.input[0], pruning)

    return show


def _cast(dtype: torch.dtype) -> torch.dtype:
    """What autocast makes of activations of a dtype: like torch's, it leaves float64 alone."""
    cast = autocast()
    return dtype if cast is None or dtype == torch.float64 else cast
