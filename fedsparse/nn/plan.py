"""What computes each sparse layer of a model, why, what it saves, and where activations change their layout."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse import backends
from fedsparse.backends import Case
from fedsparse.backends.cpu import to_blocked
from fedsparse.blocked import Blocked, sizes_of
from fedsparse.blocked.nodes import Stored, operand
from fedsparse.blocked.region import inside, network
from fedsparse.blocked.trace import ASKED, Conversion, Trace, traced
from fedsparse.errors import ConfigError
from fedsparse.nn.layer import SparseLayer, Use
from fedsparse.nn.surgery import sparse_layers

__all__ = ["Conversion", "Plan", "PlannedLayer", "plan"]


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan.

    Attributes:
        name: of the weight.
        shape: dense shape of the weight.
        density: kept share.
        granularity: unit of pruning.
        backend: who computes it when the model runs.
        blocked: its product reads and gives activations in the layout of the cpu kernels.
        reasons: per backend that was considered: `chosen`, `not needed`, or why it was passed over.
        ms_sparse: measured milliseconds of forward and backward. Of a blocked product with input, output and their
            gradients in the layout, so without the conversions that a network lists for itself; otherwise of the layer
            called alone, with those that it makes.
        ms_dense: the same of torch's dense layer, on ordinary tensors.
        bytes_sparse, bytes_dense: bytes of the weight, positions included.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    granularity: str
    backend: str
    blocked: bool
    reasons: dict[str, str]
    ms_sparse: float
    ms_dense: float
    bytes_sparse: int
    bytes_dense: int

    @property
    def why(self) -> str:
        """What decided who computes it; empty where `auto` chose the cpu kernels."""
        return next((reason for reason in self.reasons.values() if reason not in ("chosen", "not needed")), "")


@dataclass(frozen=True)
class Plan:
    """A model's sparse layers and the conversions of its activations; printing it gives a table and sentences.

    Attributes:
        layers: in module order.
        conversions: of activations between ordinary tensors and the layout of the cpu kernels in one forward pass, in
            the order in which they happened. The backward pass makes the same ones the other way round, where
            gradients are wanted. Layers that run alone convert for themselves and are not listed.
    """

    layers: tuple[PlannedLayer, ...]
    conversions: tuple[Conversion, ...] = ()

    @property
    def detours(self) -> tuple[Conversion, ...]:
        """Ways out that another way in follows and that need not be.

        Where `auto` found a dense product to be worth its conversions, leaving is the faster way and not a detour.
        """
        auto = {_path(p.name) for p in self.layers if p.reasons.get(p.backend) == "chosen"}
        last = max((i for i, c in enumerate(self.conversions) if c.enters), default=0)
        early = (c for c in self.conversions[:last] if not c.enters)
        return tuple(c for c in early if c.function is not None or c.module not in auto)

    def __str__(self) -> str:
        return "\n".join([*self._table(), *self._sentences()])

    def _table(self) -> Iterator[str]:
        head = (
            "layer",
            "shape",
            "density",
            "granularity",
            "backend",
            "blocked",
            "ms sparse",
            "ms dense",
            "bytes sparse",
            "bytes dense",
            "why",
        )
        rows = [
            (
                p.name,
                "x".join(map(str, p.shape)),
                f"{p.density:.4f}",
                p.granularity,
                p.backend,
                "yes" if p.blocked else "no",
                f"{p.ms_sparse:.3f}",
                f"{p.ms_dense:.3f}",
                str(p.bytes_sparse),
                str(p.bytes_dense),
                p.why,
            )
            for p in self.layers
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()

    def _sentences(self) -> Iterator[str]:
        if not self.conversions:
            yield "activations stay ordinary tensors"
            if any(p.backend == "cpu" for p in self.layers):
                yield (
                    "hint: layers of backend cpu convert for themselves, each time; "
                    "fedsparse.blocked.keep_blocked(model) lets them exchange activations in their own layout, unless "
                    "torch.compile or autocast runs the model"
                )
            return
        yield "activations in the layout of the cpu kernels:"
        yield from (f"  {conversion}" for conversion in self.conversions)
        if self.detours:
            places = ", ".join(f"{c.module or 'the model itself'} ({c.function or 'layer'})" for c in self.detours)
            yield (
                f"hint: ways out and back in that could be saved: {places}; between sparse layers of backend auto or "
                "cpu, norms, ReLU and other activations, sums, pooling, cat and flatten stay in the layout"
            )


@dataclass(frozen=True)
class _Seen:
    """How a sparse layer was called: what its input was like, and whether a network that stays blocked was running."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    inside: bool

    def input(self) -> Tensor:
        """Another input like it."""
        return _numbers(self.shape).to(self.device, self.dtype)


def plan(model: nn.Module, example: Tensor, *, repeats: int = 5) -> Plan:
    """Runs `model` on `example` once, as it is, and measures every sparse layer on inputs of the shapes seen.

    Args:
        model: with sparse layers; left in the mode it is in, with its buffers, gradients and torch's random state
            untouched. Of layers that run repeatedly, the last run counts.
        example: an input batch of the size to plan for.
        repeats: timed runs per layer, sparse and dense in turn; medians are reported.

    Raises:
        ConfigError: the model has no sparse layer, or `example` does not reach one.
    """
    layers = sparse_layers(model)
    with _undisturbed(model, layers, example.device):
        seen, trace = _run(model, layers, example)
        if not seen:
            raise ConfigError(
                "there is nothing to plan: no sparse layer ran on the example; call sparsify(model, ...) first"
            )
        rows = {name: _planned(name, layers[name], seen[name], trace, repeats) for name in layers if name in seen}
    why = {
        _path(name): f"layer computed by {row.backend}: {row.why or 'on ordinary tensors here'}"
        for name, row in rows.items()
        if not row.blocked
    }
    return Plan(tuple(rows.values()), tuple(_explained(c, model, why) for c in trace.conversions))


def _path(name: str) -> str:
    return name.removesuffix(".weight").removesuffix(".")


@contextmanager
def _undisturbed(model: nn.Module, layers: Mapping[str, SparseLayer], device: torch.device) -> Iterator[None]:
    """Inside it, `model` runs unwatched on copies of its buffers; afterwards all is as before, random state included.

    Batch norms in training mode would learn from the example otherwise, and dropout would draw.
    """
    watchers = {name: layer.watcher for name, layer in layers.items()}
    others = [module for module in model.modules() if not isinstance(module, SparseLayer)]
    buffers = [(m, key, b) for m in others for key, b in m._buffers.items() if b is not None]
    try:
        for layer in layers.values():
            layer.watcher = None
        for module, key, buffer in buffers:
            module._buffers[key] = buffer.clone()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, key, buffer in buffers:
            module._buffers[key] = buffer
        for name, layer in layers.items():
            layer.watcher = watchers[name]


def _run(model: nn.Module, layers: Mapping[str, SparseLayer], example: Tensor) -> tuple[dict[str, _Seen], Trace]:
    """One forward pass: how each sparse layer was called, and where tensors changed their layout."""
    seen: dict[str, _Seen] = {}
    with traced(model) as trace, torch.no_grad():

        def look(name: str) -> Callable[..., None]:
            def called(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = (*args, *kwargs.values())[0]
                seen[name] = _Seen(sizes_of(x), x.dtype, x.device, inside())
                trace.products.pop(_path(name), None)

            return called

        hooks = [layer.register_forward_pre_hook(look(name), with_kwargs=True) for name, layer in layers.items()]
        try:
            model(example)
        finally:
            for hook in hooks:
                hook.remove()
    return seen, trace


def _explained(conversion: Conversion, model: nn.Module, why: Mapping[str, str]) -> Conversion:
    """A conversion in the words of the layer that it happened in, if it was one."""
    if conversion.why == ASKED and conversion.module in why:
        return replace(conversion, why=why[conversion.module])
    module = model.get_submodule(conversion.module)
    if conversion.function is not None and isinstance(module, nn.Linear | nn.Conv2d):
        return replace(conversion, why=f"{conversion.why}; the layer is dense")
    return conversion


def _planned(name: str, layer: SparseLayer, seen: _Seen, trace: Trace, repeats: int) -> PlannedLayer:
    dense, x = layer.to_dense(), seen.input()
    blocked = trace.products.get(_path(name))
    case = blocked or _case_of(layer, x)
    runs = {"sparse": _alone(layer, x) if blocked is None else _blocked(layer, blocked), "dense": _alone(dense, x)}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(repeats + 1):
        for kind, run in runs.items():
            times[kind].append(run())
    auto = layer.backend == "auto"
    return PlannedLayer(
        name=name,
        shape=case.shape,
        density=case.density,
        granularity=str(layer.granularity),
        backend=backends.backend(layer.backend, case, layer.pattern, blocked=blocked is not None).name,
        blocked=blocked is not None,
        reasons=backends.explain(case, layer.pattern, blocked=seen.inside)
        if auto
        else {layer.backend: "chosen by set_backend"},
        ms_sparse=1e3 * statistics.median(times["sparse"][1:]),
        ms_dense=1e3 * statistics.median(times["dense"][1:]),
        bytes_sparse=layer.nnz * layer.values.element_size() + layer.pattern.nbytes,
        bytes_dense=layer.pattern.size * layer.values.element_size(),
    )


def _case_of(layer: SparseLayer, x: Tensor) -> Case:
    """The product that a layer asks for when it gets the ordinary tensor x."""
    found: list[Case] = []

    def watch(use: Use) -> None:
        found.append(use.case)

    layer.watcher = watch
    try:
        with torch.no_grad():
            layer(x)
    finally:
        layer.watcher = None
    return found[0]


def _alone(module: nn.Module, x: Tensor) -> Callable[[], float]:
    """Times a layer called by itself."""
    return lambda: _seconds(module, module, x, torch.ones_like)


def _blocked(layer: SparseLayer, case: Case) -> Callable[[], float]:
    """Times a layer's product between two others of its kind."""
    g, batch = case.geometry, case.input[0]
    geometry = () if g is None else (*g.stride, *g.padding, *g.dilation, g.groups)
    x, grad = (to_blocked(t.to(case.dtype)) for t in (_numbers(case.input), torch.ones(case.output)))
    cast = case.dtype != layer.values.dtype  # the model ran under autocast

    def product(data: Tensor) -> Tensor:
        with network(), torch.autocast("cpu", case.dtype, enabled=cast):
            y = layer.product(Blocked(Stored(data), case.input), geometry)
        assert isinstance(y, Blocked)
        assert y.node is not None
        return operand(y.node, batch)[0]

    return lambda: _seconds(layer, product, x, lambda _y: grad)


def _numbers(shape: tuple[int, ...]) -> Tensor:
    """The same numbers at every call, so that plans measure the same work."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _seconds(
    module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, grad: Callable[[Tensor], Tensor]
) -> float:
    """Wall-clock time of one forward and backward pass of `function`; gradients go nowhere."""
    x = x.detach().requires_grad_()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    start = time.perf_counter()
    y = function(x)
    torch.autograd.grad(y, leaves, grad(y))
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
