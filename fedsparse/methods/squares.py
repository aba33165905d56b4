"""Squared gradients at every position, kept or pruned, gathered during local training: what PruneFL's clients send."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fedsparse.errors import ClientError
from fedsparse.methods import checks
from fedsparse.methods.roles import CostRow, Update
from fedsparse.nn import SparseLayer, dense_gradients, sparse_layers
from fedsparse.pattern import Topology

__all__ = ["GradientSums", "Squares", "all_gradients", "check_squares", "cost_row", "summed_gradients", "totals"]

_EXTRA = "squares"
_Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class GradientSums:
    """Sums over backward passes, by weight.

    Attributes:
        term: makes a new tensor of a gradient: what is added up.
        sums: of the terms, shaped like the weights.
        steps: backward passes that reached each weight.
    """

    term: Callable[[Tensor], Tensor]
    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, gradient: Tensor) -> None:
        """One more gradient of a weight."""
        self.steps[name] = self.steps.get(name, 0) + 1
        if name in self.sums:
            self.sums[name] += self.term(gradient)
        else:
            self.sums[name] = self.term(gradient)


@contextmanager
def summed_gradients(
    layers: Mapping[str, SparseLayer], others: Mapping[str, nn.Parameter], *, term: Callable[[Tensor], Tensor]
) -> Iterator[GradientSums]:
    """Context that adds up `term` of the gradients of every backward pass inside it.

    Costs one dense weight gradient per layer and step, and as much memory as the dense weights; both are in the seconds
    and bytes that are measured of a client.

    Args:
        layers: sparse layers, whose gradients are dense-shaped.
        others: parameters that are watched as they are.
    """
    found = GradientSums(term)
    with ExitStack() as stack:
        stack.enter_context(dense_gradients(layers, found.add))
        for name, parameter in others.items():
            stack.callback(parameter.register_hook(partial(found.add, name)).remove)
        yield found


def all_gradients(model: nn.Module, *, term: Callable[[Tensor], Tensor]) -> AbstractContextManager[GradientSums]:
    """`summed_gradients` of every trainable weight of a model."""
    layers = sparse_layers(model)
    values = {id(layer.values) for layer in layers.values()}
    others = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in values}
    return summed_gradients(layers, others, term=term)


@dataclass(frozen=True, eq=False)
class Squares:
    """Squared gradients: by pruned layer, dense-shaped float32, and the sum of all other weights' ones."""

    weights: Mapping[str, Tensor]
    rest: float

    @classmethod
    def of(cls, model: nn.Module, squares: Mapping[str, Tensor]) -> "Squares":
        """Squares of a model's weights by name, told apart."""
        layers = sparse_layers(model)
        rest = sum(float(square.sum()) for name, square in squares.items() if name not in layers)
        return cls({name: square.cpu() for name, square in squares.items() if name in layers}, rest)

    def plus(self, other: "Squares") -> "Squares":
        """Both added up; nothing to begin with."""
        added = {name: square + self.weights[name] for name, square in other.weights.items() if name in self.weights}
        return Squares({**other.weights, **added}, self.rest + other.rest)


def check_squares(update: Update, topology: Topology, names: Iterable[str]) -> None:
    """Refuses an answer unless it has, for each named weight, numbers from 0 up shaped like it.

    Raises:
        ClientError: it has not.
    """
    wanted = list(names)
    squares = checks.extra(update.extras, _EXTRA, dict)
    checks.names(squares, wanted, f"{_EXTRA!r}")
    for name in wanted:
        found, shape = checks.extra(squares, name, Tensor), topology[name].shape
        if (tuple(found.shape), found.dtype) != (shape, torch.float32):
            raise ClientError(
                f"the upload's squares of {name!r} are {found.dtype} {tuple(found.shape)}; "
                f"expected torch.float32 {shape}"
            )
        if bool((found < 0).any()):
            raise ClientError(f"the upload's squares of {name!r} go down to {float(found.min()):g}; none is below 0")


def cost_row(topology: Topology, names: Iterable[str], *, uploaded: bool) -> CostRow:
    """Cost of the squares of the named weights: summed at every step, beside one dense gradient at a time."""
    sizes = [topology[name].size for name in names]
    if not sizes:
        return CostRow()
    return CostRow(probes=None, numbers_up=sum(sizes) if uploaded else 0, buffer_bytes=4 * (sum(sizes) + max(sizes)))


def totals(updates: Sequence[Update], topology: Topology, names: Iterable[str], shares: Sequence[float]) -> _Tensors:
    """Sums over clients of share times squares of each named weight, dense-shaped float64, in one pass."""
    summed = {name: torch.zeros(topology[name].shape, dtype=torch.float64) for name in names}
    for update, share in zip(updates, shares, strict=True):
        squares = checks.extra(update.extras, _EXTRA, dict) if summed else {}
        for name, total in summed.items():
            total += checks.extra(squares, name, Tensor).double() * share
    return summed
