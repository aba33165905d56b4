"""A whole training step in one CUDA graph: forward, loss, backward and optimiser as a single launch.

A graph reads and writes memory by address. So its inputs are copied into tensors of its own, sparse layers write new
masks where the old ones lie (`SparseLayer.keep_addresses`), which needs as many kept weights as before, and numbers
that were in Python when the graph was captured, a learning rate say, stay what they were.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.errors import BackendError, ShapeError
from fedsparse.nn.layer import SparseLayer

__all__ = ["CapturedStep", "Record", "capture_step", "record_cuda"]

Work = Callable[[], Tensor]
# Warms `work` up `warmup` times, calls `between`, captures it, and gives its result and what runs it once more.
Record = Callable[[Work, int, Callable[[], None]], tuple[Tensor, Callable[[], object]]]


def record_cuda(work: Work, warmup: int, between: Callable[[], None]) -> tuple[Tensor, Callable[[], object]]:
    """Captures `work` in a CUDA graph on the current device."""
    side = torch.cuda.Stream()  # what the first calls set up must not be part of a capture, nor of the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            work()
    torch.cuda.current_stream().wait_stream(side)
    between()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads, those of a data loader for example, may go on allocating.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return result, graph.replay


def capture_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    warmup: int = 3,
    record: Record = record_cuda,
) -> "CapturedStep":
    """Captures a training step; nothing is trained by it.

    Parameters, buffers and optimiser state are as before afterwards. State that the optimiser makes at its first step
    is there already, filled with zeros: exact for SGD with momentum and no dampening, and for Adam.

    Args:
        model: with everything that `loss` changes, in training mode, on a CUDA device.
        optimizer: over parameters of `model`; one that may be captured (Adam, AdamW and `FlatAdamW` want
            `capturable=True`).
        loss: from inputs to a scalar; no branch of it may depend on their values.
        inputs: tensors of the shapes and dtypes of every later call, on the device.
        warmup: steps before the capture, in which kernels are chosen and lists are built; at least 1.
        record: who captures; another one serves tests without a device.

    Raises:
        BackendError: an input is not on a CUDA device.
        RuntimeError: torch, or CUDA, cannot capture the step; the text says what was not allowed.
    """
    for tensor in inputs if record is record_cuda else ():
        if tensor.device.type != "cuda":
            raise BackendError(f"a CUDA graph needs its inputs on a CUDA device, got one on {tensor.device}")
    for layer in _sparse(model):
        layer.keep_addresses()
    held = [tensor.detach().clone() for tensor in inputs]
    undo = _remembered(model, optimizer)

    def work() -> Tensor:
        optimizer.zero_grad(set_to_none=True)  # the capture then allocates gradients where only the graph writes
        value = loss(*held)
        value.backward()
        optimizer.step()
        return value.detach()

    optimizer.zero_grad(set_to_none=True)
    value, replay = record(work, warmup, undo)
    return CapturedStep(model, optimizer, held, value, replay)


class CapturedStep:
    """A training step that has been captured; calling it trains once.

    Between calls masks may change, by `set_masks(model, masks, optimizer=optimizer)`, as long as every layer keeps as
    many weights as it did.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        held: Sequence[Tensor],
        loss: Tensor,
        replay: Callable[[], object],
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._held, self._loss, self._replay = held, loss, replay
        self._addresses, self._numbers = _addresses(model, optimizer), _numbers(optimizer)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Trains on `inputs`; the scalar loss is in a tensor that the next call overwrites.

        Raises:
            ShapeError: other shapes or dtypes than were captured.
            BackendError: what the graph reads has moved, or a setting of the optimiser has changed.
        """
        self._require_the_same()
        given, held = [(tuple(t.shape), t.dtype) for t in inputs], [(tuple(t.shape), t.dtype) for t in self._held]
        if given != held:
            raise ShapeError(f"the step was captured for inputs {held}, got {given}; capture another one for these")
        for target, source in zip(self._held, inputs, strict=True):
            target.copy_(source, non_blocking=True)
        self._replay()
        return self._loss

    def _require_the_same(self) -> None:
        if _addresses(self._model, self._optimizer) != self._addresses:
            raise BackendError(
                "parameters, optimiser state or masks are no longer where they were when the step was captured: a "
                "layer keeps another number of weights, or the model was moved; capture the step again"
            )
        if _numbers(self._optimizer) != self._numbers:
            raise BackendError(
                "settings of the optimiser have changed since the step was captured, and a graph keeps those it was "
                "captured with; capture the step again, or give the learning rate as a tensor on the device"
            )


def _sparse(model: nn.Module) -> list[SparseLayer]:
    return [module for module in model.modules() if isinstance(module, SparseLayer)]


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors of the optimiser's state, in the order of the parameters."""
    return [
        entry
        for group in optimizer.param_groups
        for parameter in group["params"]
        for entry in optimizer.state.get(parameter, {}).values()
        if isinstance(entry, Tensor)
    ]


def _remembered(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """What puts parameters, buffers and optimiser state back; state that is new by then becomes 0."""
    index = {id(tensor) for layer in _sparse(model) for tensor in layer.index}
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if id(buffer) not in index)]
    tensors += _state(optimizer)
    copies, known = [tensor.detach().clone() for tensor in tensors], {id(tensor) for tensor in tensors}

    def undo() -> None:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
            for entry in _state(optimizer):
                if id(entry) not in known:
                    entry.zero_()
        optimizer.zero_grad(set_to_none=True)

    return undo


def _addresses(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Where everything lies that a step reads, gradients aside."""
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers(), *_state(optimizer))]


def _numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Settings of the optimiser that are no tensors."""
    return [
        {key: value for key, value in group.items() if key != "params" and not isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
