"""What computes each sparse layer of a model, why, and what it saves."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsparse import backends
from fedsparse.backends import Case
from fedsparse.errors import ConfigError
from fedsparse.nn.layer import SparseLayer
from fedsparse.nn.surgery import sparse_layers
from fedsparse.ops.products import read_case

__all__ = ["Plan", "PlannedLayer", "plan"]


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan.

    Attributes:
        name: of the weight.
        shape: dense shape of the weight.
        density: kept share.
        backend: who computes it.
        reasons: per backend that was considered: `chosen`, `not needed`, or why it was passed over.
        ms_sparse, ms_dense: measured milliseconds of forward and backward, as it stands and as a dense layer.
        bytes_sparse, bytes_dense: bytes of the weight, positions included.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    backend: str
    reasons: dict[str, str]
    ms_sparse: float
    ms_dense: float
    bytes_sparse: int
    bytes_dense: int


@dataclass(frozen=True)
class Plan:
    """Table of a model's sparse layers; printing it aligns the columns."""

    layers: tuple[PlannedLayer, ...]

    def __str__(self) -> str:
        head = (
            "layer",
            "shape",
            "density",
            "backend",
            "ms sparse",
            "ms dense",
            "bytes sparse",
            "bytes dense",
        )
        rows = [
            (
                p.name,
                "x".join(map(str, p.shape)),
                f"{p.density:.4f}",
                p.backend,
                f"{p.ms_sparse:.3f}",
                f"{p.ms_dense:.3f}",
                str(p.bytes_sparse),
                str(p.bytes_dense),
            )
            for p in self.layers
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *rows))


def plan(model: nn.Module, example: Tensor, *, repeats: int = 5) -> Plan:
    """Runs `model` on `example` once and measures every sparse layer alone on inputs of the shapes seen.

    Args:
        model: with sparse layers; left in the mode it is in, and without gradients touched.
        example: an input batch of the size to plan for.
        repeats: timed runs per layer, sparse and dense in turn; medians are reported.

    Raises:
        ConfigError: the model has no sparse layer, or `example` does not reach one.
    """
    layers = sparse_layers(model)
    seen: dict[str, tuple[Case, Tensor]] = {}
    for name, layer in layers.items():
        layer.watcher = _recorder(name, seen)
    try:
        with torch.no_grad():
            model(example)
    finally:
        for layer in layers.values():
            layer.watcher = None
    if not seen:
        raise ConfigError(
            "there is nothing to plan: no sparse layer ran on the example; call sparsify(model, ...) first"
        )
    return Plan(tuple(_planned(name, layers[name], *seen[name], repeats) for name in layers if name in seen))


def _recorder(name: str, seen: dict[str, tuple[Case, Tensor]]) -> Callable[..., None]:
    def record(x: Tensor, _output: Tensor, weight: tuple[list[Tensor], tuple[int, ...], tuple[int, ...], str]) -> None:
        index, shape, geometry, _backend = weight
        seen[name] = read_case(x, shape, index[1].numel(), geometry), x.detach()

    return record


def _planned(name: str, layer: SparseLayer, case: Case, x: Tensor, repeats: int) -> PlannedLayer:
    dense = layer.to_dense()
    times: dict[str, list[float]] = {"sparse": [], "dense": []}
    for _ in range(repeats + 1):
        for kind, module in (("sparse", layer), ("dense", dense)):
            times[kind].append(_seconds(module, x))
    return PlannedLayer(
        name=name,
        shape=case.shape,
        density=case.density,
        backend=backends.backend(layer.backend, case).name,
        reasons=backends.explain(case),
        ms_sparse=1e3 * statistics.median(times["sparse"][1:]),
        ms_dense=1e3 * statistics.median(times["dense"][1:]),
        bytes_sparse=layer.nnz * layer.values.element_size() + layer.pattern.nbytes,
        bytes_dense=layer.pattern.size * layer.values.element_size(),
    )


def _seconds(module: nn.Module, x: Tensor) -> float:
    """Wall-clock time of one forward and backward pass; gradients go nowhere."""
    x = x.detach().requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    start = time.perf_counter()
    y = module(x)
    torch.autograd.grad(y, leaves, torch.ones_like(y))
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
