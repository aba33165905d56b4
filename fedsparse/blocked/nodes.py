"""What blocked activations are before anybody needs them as numbers.

Batch norm, ReLU and a residual sum are not computed when they are called. They become nodes, and whoever reads the
activations next, a convolution or one fused pass over memory, computes them on the way:

    Stored     the numbers themselves
    Normed     a norm of stored numbers
    Activated  relu(norm of stored numbers): a convolution's input, read through its term and never stored
    Sum        of two of Stored or Normed: a residual connection on its way to its ReLU
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsparse.backends.activation import Pruning
from fedsparse.backends.term import Term
from fedsparse.blocked.functions import Activate, Combine, Leave, Norm, Read, apply
from fedsparse.blocked.saving import Form, gate_bits, pruned_form, pruning

__all__ = [
    "Activated",
    "Node",
    "Normed",
    "Stored",
    "Sum",
    "add",
    "dtype_of",
    "form",
    "leave",
    "operand",
    "relu",
    "requires_grad",
    "sources",
    "store",
    "with_sources",
    "without_history",
]


@dataclass(frozen=True)
class Stored:
    """Numbers `(groups, channels, height, width, lanes)`, differentiable.

    `forms` are what products keep of them; readers that prune alike share one.
    """

    data: Tensor
    forms: dict[Pruning, Form] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Normed:
    """`norm` of `data`, not computed yet."""

    data: Tensor
    norm: Norm


@dataclass(frozen=True)
class Activated:
    """`term` of `data`. The gradient of `data`, in the graph, is that of what the term makes of it.

    `held` is the same term of what its norm, if there is one, holds for the backward pass; `forms` as in `Stored`.
    """

    data: Tensor
    term: Term
    held: Term | None = None
    forms: dict[Pruning, Form] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Sum:
    """Sum of two nodes of the same shape, not computed yet."""

    left: Stored | Normed
    right: Stored | Normed


Node = Stored | Normed | Activated | Sum


def relu(node: Node, batch: int) -> Node:
    """relu(node), put off as long as possible."""
    match node:
        case Normed(data, norm):
            pruned = pruning()
            held = norm.hold(data.detach(), None if pruned is None else pruned.dtype)
            alias = apply(Activate, data, norm.weight, norm.bias, norm, held, None, batch)
            term = Term(alias.detach(), norm.scale, norm.shift, relu=True)
            return Activated(alias, term, norm.held_term(held, data.dtype))
        case Stored(data):
            bits = gate_bits(Term(data.detach(), relu=True), batch)
            alias = apply(Activate, data, None, None, None, data.detach() if bits is None else None, bits, batch)
            return Activated(alias, Term(alias.detach(), relu=True))
        case Activated():
            return node
        case Sum():
            return Stored(_combine(node, batch, relu=True))


def add(left: Node, right: Node, batch: int) -> Sum:
    """left + right, put off."""
    return Sum(_addend(left, batch), _addend(right, batch))


def store(node: Node, batch: int) -> Tensor:
    """The numbers of a node."""
    match node:
        case Stored(data):
            return data
        case Activated(data, term):
            return apply(Read, data, term)
        case Normed() | Sum():
            return _combine(node, batch, relu=False)


def operand(node: Node, batch: int) -> tuple[Tensor, Term]:
    """A node as a product reads it: the differentiable data and the term of them."""
    if isinstance(node, Activated):
        return node.data, node.term
    data = store(node, batch)
    return data, Term(data.detach())


def form(node: Node, term: Term, batch: int, pruning: Pruning) -> Form:
    """What a product keeps of its operand `term`."""
    if not isinstance(node, Stored | Activated):
        return pruned_form(term, None, batch, pruning)
    if pruning not in node.forms:
        held = node.held if isinstance(node, Activated) else None
        node.forms[pruning] = pruned_form(term, held, batch, pruning)
    return node.forms[pruning]


def leave(node: Node, shape: tuple[int, ...]) -> Tensor:
    """A node as an ordinary tensor of `shape`."""
    return apply(Leave, store(node, shape[0]), shape)


def sources(node: Node) -> tuple[Tensor | None, ...]:
    """The tensors whose gradients a node's gradient leads to."""
    match node:
        case Sum(left, right):
            return *sources(left), *sources(right)
        case Normed(data, norm):
            return data, norm.weight, norm.bias
        case Stored(data) | Activated(data):
            return (data,)


def with_sources(node: Node, tensors: Iterator[Tensor | None]) -> Node:
    """The node with other sources, equal in numbers, taken from `tensors` in order."""
    if isinstance(node, Sum):
        left, right = with_sources(node.left, tensors), with_sources(node.right, tensors)
        assert isinstance(left, Stored | Normed)
        assert isinstance(right, Stored | Normed)
        return Sum(left, right)
    data = next(tensors)
    assert data is not None
    if isinstance(node, Normed):
        return Normed(data, replace(node.norm, weight=next(tensors), bias=next(tensors)))
    return replace(node, data=data)


def without_history(node: Node) -> Node:
    """The node without gradients."""
    return with_sources(node, (None if s is None else s.detach() for s in sources(node)))


def dtype_of(node: Node) -> torch.dtype:
    """What the numbers of a node are stored as, or would be."""
    return dtype_of(node.left) if isinstance(node, Sum) else node.data.dtype


def requires_grad(node: Node) -> bool:
    """Whether gradients flow through a node; nothing is computed to tell."""
    return any(s is not None and s.requires_grad for s in sources(node))


def _addend(node: Node, batch: int) -> Stored | Normed:
    return node if isinstance(node, Stored | Normed) else Stored(store(node, batch))


def _combine(node: Normed | Sum, batch: int, *, relu: bool) -> Tensor:
    left, right = (node, None) if isinstance(node, Normed) else (node.left, node.right)
    x, norm = _parts(left)
    r, r_norm = _parts(right)
    return apply(Combine, x, *_learned(norm), r, *_learned(r_norm), (norm, r_norm), relu, batch, pruning())


def _parts(node: Stored | Normed | None) -> tuple[Tensor | None, Norm | None]:
    if node is None:
        return None, None
    return node.data, node.norm if isinstance(node, Normed) else None


def _learned(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if norm is None else (norm.weight, norm.bias)
