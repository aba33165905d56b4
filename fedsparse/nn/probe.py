"""The largest gradients of pruned weights, caught during a backward pass."""

from types import TracebackType

import torch
from torch import Tensor

from fedsparse.blocked import plain
from fedsparse.errors import PatternError
from fedsparse.nn.layer import SparseLayer, Use
from fedsparse.ops.held import Catch

__all__ = ["topk_pruned_gradient"]


class topk_pruned_gradient:
    """Context that finds the k largest |dL/dw| over the pruned positions of one layer.

    Run one forward and backward pass of the loss inside it. The dense gradient is streamed, never held: extra memory
    is O(k) beside one chunk of positions; of a layer used several times also a copy of what enters and comes back at
    each use. A network that keeps its activations blocked keeps them so. The result equals a stable sort of the dense
    gradient's pruned entries, of the whole input where activations are pruned.

    Of a layer pruned in larger units than single weights (see `sparsify`) it finds whole units: those of the largest
    root mean square of dL/dw, as long as their positions fit into k.

        with fs.topk_pruned_gradient(layer, k) as top:
            loss(model(x), y).backward()
        top.indices, top.gradients

    Args:
        layer: a sparse layer that the loss uses once; a linear one may be used several times, like a table of tokens
            that is tied to the output of a language model.
        k: how many at most; fewer are returned when fewer are pruned or the next unit does not fit.

    Attributes:
        indices: `(k,)` int64 flat positions, by falling magnitude of their unit, ties by position.
        gradients: `(k,)` signed gradients at `indices`.

    Raises:
        PatternError: `layer` is not sparse, k is negative, it was not used at all, or is a convolution used twice; or
            it ran without gradients, or once more after the backward pass.
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
        self._caught: list[tuple[Tensor, Tensor]] = []  # gradient of the output and input of each use

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

    def _watch(self, use: Use) -> Catch:
        self._uses += 1
        if self._uses > 1 and use.case.geometry is not None:
            raise PatternError(
                "the convolution ran twice inside topk_pruned_gradient; only linear layers can be shared"
            )
        if self._found is not None:
            raise PatternError("the layer ran again after backward() inside topk_pruned_gradient; it searches one pass")
        if not use.recorded:
            raise PatternError("no gradient is being recorded inside topk_pruned_gradient; remove torch.no_grad()")

        def catch(grad: Tensor, x: Tensor) -> None:
            self._caught.append((grad, x))
            if len(self._caught) == self._uses:
                # The gradients of linear products sum up like those of one product with all their rows.
                grads, inputs = (
                    torch.cat(plain(parts)) if self._uses > 1 else parts[0] for parts in zip(*self._caught, strict=True)
                )
                self._caught.clear()
                self._found = self._layer.top_pruned_gradient(grads, inputs, self._k, use.weight)

        return catch
