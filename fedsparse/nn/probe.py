"""The largest gradients of pruned weights, caught during a backward pass."""

from types import TracebackType
from typing import Any

from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.nn.layer import SparseLayer
from fedsparse.ops import topk_pruned

__all__ = ["topk_pruned_gradient"]


class topk_pruned_gradient:
    """Context that finds the k largest |dL/dw| over the pruned positions of one layer.

    Run one forward and backward pass of the loss inside it. The dense gradient is streamed, never held: extra memory
    is O(k) beside one chunk of positions. The result equals a stable sort of the dense gradient's pruned entries.

        with fs.topk_pruned_gradient(layer, k) as top:
            loss(model(x), y).backward()
        top.indices, top.gradients

    Args:
        layer: a sparse layer that the loss uses exactly once.
        k: how many; fewer are returned when fewer are pruned.

    Attributes:
        indices: `(k,)` int64 flat positions, by falling magnitude, ties by position.
        gradients: `(k,)` signed gradients at `indices`.

    Raises:
        PatternError: `layer` is not sparse, k is negative, or the layer was used twice or not at all.
    """

    def __init__(self, layer: SparseLayer, k: int) -> None:
        if not isinstance(layer, SparseLayer):
            raise PatternError(f"gradients of pruned weights need a sparse layer, got {type(layer).__name__}")
        if k < 0:
            raise PatternError(f"k must not be negative, got {k}")
        self._layer = layer
        self._k = k
        self._found: tuple[Tensor, Tensor] | None = None
        self._uses = 0

    def __enter__(self) -> "topk_pruned_gradient":
        self._layer.watcher = self._watch
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layer.watcher = None
        if kind is None and self._found is None:
            raise PatternError(
                "no gradient reached the layer inside topk_pruned_gradient; run the forward pass and backward() there"
            )

    @property
    def indices(self) -> Tensor:
        """Flat positions `(k,)`."""
        return self._result()[0]

    @property
    def gradients(self) -> Tensor:
        """Signed gradients `(k,)`."""
        return self._result()[1]

    def _result(self) -> tuple[Tensor, Tensor]:
        if self._found is None:
            raise PatternError("there is no result before backward() has run inside topk_pruned_gradient")
        return self._found

    def _watch(self, x: Tensor, output: Tensor, weight: tuple[Any, ...]) -> None:
        self._uses += 1
        if self._uses > 1:
            raise PatternError(
                "the layer ran twice inside topk_pruned_gradient; gradients of shared layers are not supported"
            )

        if not output.requires_grad:
            raise PatternError("no gradient is being recorded inside topk_pruned_gradient; remove torch.no_grad()")

        def catch(grad: Tensor) -> None:
            self._found = topk_pruned(grad, x.detach(), self._k, *weight)

        output.register_hook(catch)
