"""The same layer in every engine: fedsparse, and those it is compared with."""

import copy
import ctypes
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsparse.backends.choose import BACKENDS
from fedsparse.backends.cpu import from_blocked, to_blocked
from fedsparse.bench.cases import DenseLayer, LayerCase, Operands, Results
from fedsparse.blocked import Blocked
from fedsparse.blocked.nodes import Stored
from fedsparse.blocked.region import network
from fedsparse.experiment.environment import version
from fedsparse.nn import SparseConv2d, SparseLinear
from fedsparse.nn.layer import SparseLayer

__all__ = [
    "DENSE",
    "PEERS",
    "WAYS",
    "Engine",
    "FedsparseLayer",
    "FedsparseNetwork",
    "LayerTrial",
    "SparseLab",
    "SparseProp",
    "TorchCSR",
    "TorchDense",
    "Trial",
    "status",
]


class Trial(Protocol):
    """A layer in one engine, ready to be timed."""

    def __call__(self) -> object:
        """Forward, and backward to input and weights."""
        ...

    def results(self) -> Results:
        """What it computes."""
        ...


class Engine(Protocol):
    """Something that computes layers."""

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    def available(self) -> str | None:
        """None, or why this engine cannot be used here."""
        ...

    def refuse(self, case: LayerCase) -> str | None:
        """None, or why it cannot compute this case."""
        ...

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        """Its ways to compute the case, by name; the fastest of them counts."""
        ...


@dataclass(frozen=True)
class LayerTrial:
    """A layer that autograd knows how to differentiate.

    Attributes:
        product: from input to output.
        x: input, a leaf.
        grad: gradient of the output.
        weight: the parameter, a leaf.
        kept: from its gradient to the gradients of the kept weights, in any order.
    """

    product: Callable[[Tensor], Tensor]
    x: Tensor
    grad: Tensor
    weight: Tensor
    kept: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls,
        operands: Operands,
        product: Callable[[Tensor], Tensor],
        weight: Tensor,
        *,
        kept: Callable[[Tensor], Tensor] = lambda gradient: gradient,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> "LayerTrial":
        """A trial on the numbers of `operands`, its input in `memory_format`."""
        x = operands.x.contiguous(memory_format=memory_format).requires_grad_()
        with torch.no_grad():
            grad = torch.empty_like(product(x)).copy_(operands.grad)  # laid out as the next layer would
        return cls(product, x, grad, weight, kept)

    def __call__(self) -> object:
        return torch.autograd.grad(self.product(self.x), (self.x, self.weight), self.grad)

    def results(self) -> Results:
        y = self.product(self.x)
        grad_x, grad_weight = torch.autograd.grad(y, (self.x, self.weight), self.grad)
        return Results(y.detach(), grad_x, self.kept(grad_weight))


# ---- fedsparse
class FedsparseLayer:
    """A sparse layer by itself: a plain tensor in and out, conversions between layouts included."""

    name = "fedsparse layer"

    def available(self) -> str | None:
        return None

    def refuse(self, case: LayerCase) -> str | None:
        return None

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        layer = _sparse(operands)
        return {"": LayerTrial.of(operands, layer, layer.values)}


class FedsparseNetwork:
    """The same layer between others of its kind: activations come and go in the layout of the kernels."""

    name = "fedsparse network"

    def available(self) -> str | None:
        return None

    def refuse(self, case: LayerCase) -> str | None:
        return None

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        return {"": NetworkTrial(operands, _sparse(operands))}


class NetworkTrial:
    """A sparse layer whose input and output gradient are blocked before the clock starts."""

    def __init__(self, operands: Operands, layer: SparseLayer) -> None:
        self._layer, self._shape = layer, tuple(operands.x.shape)
        self._out = tuple(operands.grad.shape)
        isa = getattr(BACKENDS["cpu"], "isa", None)
        self._x, self._grad = to_blocked(operands.x, isa).requires_grad_(), to_blocked(operands.grad, isa)

    def _forward(self) -> Tensor:
        with network():
            y = self._layer(Blocked(Stored(self._x), self._shape))
        assert isinstance(y.node, Stored)
        return y.node.data

    def __call__(self) -> object:
        return torch.autograd.grad(self._forward(), (self._x, self._layer.values), self._grad)

    def results(self) -> Results:
        y = self._forward()
        grad_x, grad_values = torch.autograd.grad(y, (self._x, self._layer.values), self._grad)
        return Results(from_blocked(y.detach(), self._out), from_blocked(grad_x, self._shape), grad_values)


def _sparse(operands: Operands) -> SparseLayer:
    layer: SparseLayer
    if isinstance(operands.dense, nn.Linear):
        layer = SparseLinear.from_dense(operands.dense, operands.kept)
    else:
        layer = SparseConv2d.from_dense(operands.dense, operands.kept)
    layer.set_backend("cpu")
    return layer


# ---- torch
class TorchDense:
    """torch's own layer, which multiplies with the pruned zeros."""

    name = "torch dense"

    def available(self) -> str | None:
        return None

    def refuse(self, case: LayerCase) -> str | None:
        return None

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        formats = {"": torch.contiguous_format}
        if isinstance(operands.dense, nn.Conv2d):
            formats["channels_last"] = torch.channels_last
        return {name: self._trial(operands, memory_format) for name, memory_format in formats.items()}

    def _trial(self, operands: Operands, memory_format: torch.memory_format) -> Trial:
        layer = copy.deepcopy(operands.dense).to(memory_format=memory_format)  # type: ignore[call-overload]
        return LayerTrial.of(
            operands, layer, layer.weight, kept=lambda gradient: gradient[operands.kept], memory_format=memory_format
        )


class TorchCSR:
    """torch.sparse: a linear layer whose weight is a CSR matrix."""

    name = "torch.sparse CSR"

    def available(self) -> str | None:
        return None

    def refuse(self, case: LayerCase) -> str | None:
        return None if case.size is None else "torch.sparse has no convolution"

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            weight = operands.dense.weight.detach().to_sparse_csr().requires_grad_()

        def product(x: Tensor) -> Tensor:
            y: Tensor = torch.sparse.mm(weight, x.t()).t()
            return y

        return {"": LayerTrial.of(operands, product, weight, kept=lambda gradient: gradient.values())}


# ---- packages of the extra `bench`
@cache
def _problem(package: str) -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            return f"{package} is not installed; pip install 'fedsparse[bench]'"
        return f"{package} is installed but lacks a part of it: {error}"
    except Exception as error:  # whatever its own code raises on a machine it was not made for
        return f"{package} is installed but cannot be loaded: {error}"
    return None


class SparseProp:
    """SparseProp: vectorised over the batch, or over the width of the output, whichever is faster."""

    name = "SparseProp"
    package = "sparseprop"

    def available(self) -> str | None:
        return _problem(self.package)

    def refuse(self, case: LayerCase) -> str | None:
        return None if case.stride in (1, 2) else f"SparseProp has strides 1 and 2, not {case.stride}"

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        layers = self.layers(operands.dense)
        return {name: LayerTrial.of(operands, layer, layer.W_val) for name, layer in layers.items()}

    def layers(self, dense: DenseLayer) -> dict[str, Any]:
        """Its ways to compute a layer whose pruned weights are 0."""
        modules: Any = importlib.import_module("sparseprop.modules")
        if isinstance(dense, nn.Linear):
            return {"": modules.SparseLinear.from_dense(dense)}
        over_batch, over_width = (
            modules.SparseConv2d.from_dense(dense, vectorizing_over_on=width) for width in (False, True)
        )
        # This way reads input and gradient as contiguous whatever their layout, and would be wrong where they are not.
        over_width.register_forward_pre_hook(_contiguous_inputs)
        over_width.register_forward_hook(_contiguous_gradient)
        return {"over batch": over_batch, "over width": over_width}


def _contiguous_inputs(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)


def _contiguous_gradient(_layer: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)


class SparseLab:
    """SparseLab: a linear layer whose weight is a CSR matrix with room to grow."""

    name = "SparseLab"
    package = "sparselab"

    def __init__(self) -> None:
        # Its cache of transposed weights is keyed by the identity of their Python objects. One that is given back
        # and made anew would be mistaken for the old one, so none is given back.
        self._alive: list[nn.Module] = []

    def available(self) -> str | None:
        return _problem(self.package)

    def refuse(self, case: LayerCase) -> str | None:
        return None if case.size is None else "SparseLab has no convolution"

    def build(self, operands: Operands) -> Mapping[str, Trial]:
        lab: Any = importlib.import_module(self.package)
        _share_threads(Path(lab.__file__).parent)
        case = operands.case
        layer = lab.SparseLinear(case.inputs, case.outputs, bias=False, sparsity=1 - case.density)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            matrix = lab.PaddedCSR.from_dense(operands.dense.weight.detach())
        # A layer draws its own pattern. There is no public way to hand it one, so its two fields are set.
        layer._csr, layer._values = matrix, nn.Parameter(torch.as_tensor(matrix.values))
        self._alive.append(layer)
        live = layer._values.detach() != 0  # the rest is room to grow
        return {"": LayerTrial.of(operands, layer, layer._values, kept=lambda gradient: gradient[live])}


def _share_threads(package: Path) -> None:
    """Gives an OpenMP runtime that a wheel brings along as many threads as torch has."""
    for library in package.with_name(f"{package.name}.libs").glob("libgomp*"):
        ctypes.CDLL(str(library)).omp_set_num_threads(torch.get_num_threads())


DENSE = TorchDense()
PEERS: tuple[Engine, ...] = (DENSE, TorchCSR(), SparseProp(), SparseLab())
# How a sparse layer can be used. Each is measured as an engine of its own.
WAYS: tuple[Engine, ...] = (FedsparseLayer(), FedsparseNetwork())


def status(peer: Engine) -> dict[str, object]:
    """Name, version, and why it is left out, or None; ready for JSON."""
    package = getattr(peer, "package", "torch")
    return {"name": peer.name, "version": version(package), "unavailable": peer.available()}
