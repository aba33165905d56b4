"""Dense gradients of sparse weights, handed over step by step while a model trains."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.nn.layer import SparseLayer, Use, Watcher
from fedsparse.ops.held import Catch

__all__ = ["dense_gradients"]

Receiver = Callable[[str, Tensor], None]


@contextmanager
def dense_gradients(layers: Mapping[str, SparseLayer], receive: Receiver) -> Iterator[None]:
    """Context in which every backward pass also computes dL/dW at pruned positions, and hands it over.

    The training inside goes on as without it, up to rounding. A gradient is computed by torch's dense kernels and lives
    as long as the receiver keeps it: one layer's memory at a time for a receiver that adds up, beside its sums. A layer
    is watched through one pass and its backward pass before it may run again.

        with dense_gradients(sparse_layers(model), lambda name, gradient: sums[name].add_(gradient)):
            train(model)

    Args:
        layers: sparse layers by name, each used once in a forward pass.
        receive: called with a layer's name and the gradient of its dense weight, which it may keep and change.

    Raises:
        PatternError: a layer ran twice before a backward pass.
    """
    for name, layer in layers.items():
        layer.watcher = _watcher(name, layer, receive)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.watcher = None


def _watcher(name: str, layer: SparseLayer, receive: Receiver) -> Watcher:
    waiting = False

    def watch(use: Use) -> Catch | None:
        nonlocal waiting
        if not use.recorded:  # an evaluation
            return None
        if waiting:
            raise PatternError(
                f"{name!r} ran twice before a backward pass inside dense_gradients; "
                "gradients of shared layers are not supported"
            )
        waiting = True

        def catch(grad: Tensor, x: Tensor) -> None:
            nonlocal waiting
            waiting = False
            receive(name, layer.dense_gradient(grad, x, use.weight))

        return catch

    return watch
