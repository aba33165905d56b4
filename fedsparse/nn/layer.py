"""What all sparse layers share: compact values, their pattern, and how both change together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse import backends, ops
from fedsparse.backends import Case, Change
from fedsparse.backends.activation import Pruning
from fedsparse.blocked import plain
from fedsparse.blocked.caught import blocked_topk_pruned
from fedsparse.blocked.products import blocked_product
from fedsparse.errors import BackendError
from fedsparse.ops.held import Catch
from fedsparse.ops.products import read_case
from fedsparse.pattern import Granularity, Move, Pattern, carry_all

__all__ = ["Operand", "SparseLayer", "Use", "Watcher", "repattern"]

_KEPT = "kept"


# Of a product's weight: index, shape, geometry and backend.
Operand = tuple[Any, ...]


@dataclass(frozen=True)
class Use:
    """One product that a layer is about to compute.

    Attributes:
        case: what is asked of the backend; under autocast the dtype may still change.
        weight: its weight.
        recorded: whether a gradient can come back.
    """

    case: Case
    weight: Operand
    recorded: bool


# Asked before each product: who catches the gradient of its output, and its input, in the backward pass, if anybody.
Watcher = Callable[[Use], Catch | None]


class SparseLayer(nn.Module):
    """A layer whose weight is stored as `values` `(nnz,)` and a pattern.

    `values` is the only weight parameter, so gradients and optimiser state have length nnz as well. The pattern
    travels in `state_dict` as `kept`: the mask, eight positions a byte.

    Attributes:
        values: `(nnz,)` parameter, in the order of flat positions.
        bias: `(out,)` parameter, or None.
        backend: who computes; `auto` decides by case.
        watcher: asked before each product; see `topk_pruned_gradient`.
        activation_pruning: what is saved of the input in training; None: all. See `prune_activations`.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    _fixed = False  # see keep_addresses

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.backend = "auto"
        self.watcher: Watcher | None = None
        self.activation_pruning: Pruning | None = None
        self._hold(pattern)
        self.values = nn.Parameter(values)
        self.bias = None if bias is None else nn.Parameter(bias)

    # ---- the pattern
    def _hold(self, pattern: Pattern) -> None:
        """Makes `pattern` this layer's. Its tensors are buffers, so they follow the module from device to device."""
        for name, tensor in zip(Pattern.INDEX_NAMES, pattern.index, strict=True):
            self.register_buffer(name, tensor.clone() if self._fixed else tensor, persistent=False)
        self._pattern = pattern

    def keep_addresses(self) -> None:
        """From now on, a pattern of as many weights is written where the present one lies; on every device.

        That is what a captured CUDA graph needs, which reads memory and knows no tensors. The layer then holds its
        index twice, because others may hold the patterns that it gives away. A copy of the layer is an ordinary one.
        """
        if not self._fixed:
            pattern, self._fixed = self.pattern, True
            for name, tensor in zip(Pattern.INDEX_NAMES, pattern.index, strict=True):
                self.register_buffer(name, tensor.clone(), persistent=False)

    @property
    def index(self) -> list[Tensor]:
        """The pattern's tensors as the ops take them."""
        return [self.get_buffer(name) for name in Pattern.INDEX_NAMES]

    @property
    def pattern(self) -> Pattern:
        """Kept positions of the weight."""
        if self._fixed:
            self._pattern = self._pattern.to(self.get_buffer("column").device)
        elif self._buffers["column"] is not self._pattern.column:  # the module has been moved or copied
            self._pattern = Pattern.from_index(self._pattern.shape, self.index, self._pattern.granularity)
        return self._pattern

    @property
    def granularity(self) -> Granularity:
        """Unit of pruning."""
        return self._pattern.granularity

    @property
    def mask(self) -> Tensor:
        """Bool mask of the dense shape; True is kept."""
        return self.pattern.mask()

    @property
    def weight(self) -> Tensor:
        """Dense weight, built for the caller and detached from the graph."""
        return self.pattern.scatter(self.values.detach())

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Kept share of the weight."""
        return self.pattern.density

    def repattern(self, new: Pattern, *, optimizer: torch.optim.Optimizer | None = None, grown: float = 0.0) -> None:
        """`repattern` of this layer alone."""
        repattern([(self, new)], optimizer=optimizer, grown=grown)

    def effective_values(self) -> Tensor:
        """What inputs are multiplied with, `(nnz,)`: `values`, or what a layer derives from them."""
        return self.values

    def product(self, x: Tensor, geometry: tuple[int, ...]) -> Tensor:
        """Product of a batched input with the weight; `geometry` as in `ops.product`."""
        values = self.effective_values()
        weight: Operand = (self.index, self._pattern.shape, geometry, self.backend)
        saves = self.training and torch.is_grad_enabled() and self.values.requires_grad
        pruning = self.activation_pruning if saves else None
        catch = None if self.watcher is None else self.watcher(self._use(x, values, weight))
        blocked = blocked_product(x, values, self.bias, self.pattern, geometry, self.backend, pruning, catch)
        if blocked is not None:
            return blocked
        if pruning is None and catch is None:
            return ops.product(plain(x), values, self.bias, *weight)
        y: Tensor = ops.held_product(plain(x), values, self.bias, weight, pruning, catch)
        return y

    def _use(self, x: Tensor, values: Tensor, weight: Operand) -> Use:
        recorded = any(t is not None and t.requires_grad for t in (x, values, self.bias))
        case = read_case(x, self._pattern.shape, values.numel(), weight[2])
        return Use(case, weight, recorded and torch.is_grad_enabled())

    # ---- gradients at pruned positions, from what is caught: output's gradient, input and weight of a product
    def top_pruned_gradient(self, grad: Tensor, x: Tensor, k: int, weight: Operand) -> tuple[Tensor, Tensor]:
        """Flat positions and signed dL/dw of the (at most) k pruned weights of largest |dL/dw|, streamed.

        Of larger units than single weights, of those of the largest root mean square that fit into k.
        """
        tiling = self.granularity.tiling(self._pattern.shape)
        found = blocked_topk_pruned(grad, x, k, weight, tiling)
        if found is not None:
            return found[0], found[1].to(self.values.dtype)
        grad, x = self.ordinary(grad, x)
        if tiling.size == 1:
            return ops.topk_pruned(grad, x, k, *weight)
        return ops.topk_pruned_units(grad, x, k, tiling, *weight)

    def dense_gradient(self, grad: Tensor, x: Tensor, weight: Operand) -> Tensor:
        """dL/dw at every position, in dense shape."""
        _, shape, geometry, _ = weight
        grad, x = self.ordinary(grad, x)
        return ops.weight_gradient(grad, x, shape, geometry)

    def ordinary(self, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What was caught as ordinary tensors of the values' dtype, which is wider than autocast's."""
        return plain(grad).to(self.values.dtype), plain(x).to(self.values.dtype)

    def to_dense(self) -> nn.Module:
        """The torch layer that computes the same function."""
        raise NotImplementedError

    def set_backend(self, name: str) -> None:
        """Lets the backend `name` compute this layer.

        Raises:
            BackendError: there is no backend of that name.
        """
        if name not in backends.names():
            raise BackendError(f"unknown backend {name!r}; expected one of {', '.join(backends.names())}")
        self.backend = name

    # ---- saving
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_pattern"] = self.pattern
        state["_fixed"] = False
        state["_buffers"] = {name: b for name, b in self._buffers.items() if name not in Pattern.INDEX_NAMES}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold(self._pattern.to(self.values.device))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        bits = np.packbits(self.mask.cpu().numpy().reshape(-1))
        destination[prefix + _KEPT] = torch.from_numpy(bits)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        bits, needed = state_dict.pop(prefix + _KEPT, None), (self.pattern.size + 7) // 8
        if bits is None:
            missing_keys.append(prefix + _KEPT)
        elif bits.shape != (needed,):
            error_msgs.append(
                f"{prefix}{_KEPT} has {bits.numel()} bytes; a weight of shape {self.pattern.shape} needs {needed}"
            )
        else:
            flags = np.unpackbits(bits.cpu().numpy(), count=self.pattern.size).astype(bool)
            new = Pattern.from_mask(torch.from_numpy(flags).view(self.pattern.shape), self.granularity)
            if new != self.pattern:
                self.repattern(new)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        unit = f"granularity={self.granularity}, bias={self.bias is not None}"
        return f"shape={self._pattern.shape}, nnz={self.nnz}, density={self.density:.4f}, {unit}"


# ---- changing patterns
def repattern(
    changes: Sequence[tuple[SparseLayer, Pattern]],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    grown: float = 0.0,
) -> None:
    """Changes patterns in place: kept weights keep value and optimiser state, grown ones start fresh.

    The one place where values, optimiser state and pattern change together. `values` stays the same parameter object,
    in the same memory where as many weights are kept as before; its gradient is dropped. What backends derive from the
    patterns is made for all layers at once.

    Args:
        changes: each layer, once, and a pattern of the same dense shape.
        optimizer: whose state of `values` follows (0 for grown weights).
        grown: value of grown weights.

    Raises:
        PatternError: a pattern of another shape; then no layer has changed.
    """
    new = [(layer, pattern.to(layer.values.device)) for layer, pattern in changes]
    states = [_followers(layer, optimizer) for layer, _ in new]
    carried = carry_all(
        [
            Move(layer.pattern, pattern, [(layer.values.detach(), grown), *((entry, 0.0) for entry in state.values())])
            for (layer, pattern), state in zip(new, states, strict=True)
        ]
    )
    stay: list[tuple[Tensor, Tensor]] = []
    for (layer, _), state, (values, *entries) in zip(new, states, carried, strict=True):
        layer.values.grad = None
        layer.values.data = _placed(layer.values.detach(), values, stay)
        for (key, old), entry in zip(state.items(), entries, strict=True):
            optimizer.state[layer.values][key] = _placed(old, entry, stay)  # type: ignore[union-attr]
    _overwrite(stay)
    _hold_all(new)


def _followers(layer: SparseLayer, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """What the optimiser holds for each of a layer's values."""
    state = {} if optimizer is None else optimizer.state.get(layer.values, {})
    return {k: t for k, t in state.items() if isinstance(t, Tensor) and t.shape == layer.values.shape}


def _placed(old: Tensor, new: Tensor, stay: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Where `new` shall be: in the memory of `old` if it fits, which is left to do in `stay`."""
    if old.shape != new.shape:
        return new
    stay.append((old, new))
    return old


def _hold_all(changes: Sequence[tuple[SparseLayer, Pattern]]) -> None:
    """Makes patterns those of layers, where the old ones lie if that was asked for and they fit."""
    fixed = [
        (layer, pattern)
        for layer, pattern in changes
        if layer._fixed and backends.fit_in_place(layer.index, pattern.index)
    ]
    written = backends.rewrite_lists([Change(layer.get_buffer("column"), pattern) for layer, pattern in fixed])
    stay = [change for change, fits in zip(fixed, written, strict=True) if fits]
    _overwrite([pair for layer, pattern in stay for pair in zip(layer.index, pattern.index, strict=True)])
    for layer, pattern in stay:
        layer._pattern = pattern
    staying, moved = {id(layer) for layer, _ in stay}, []
    for layer, pattern in changes:
        if id(layer) not in staying:
            old = layer.get_buffer("column")
            layer._hold(pattern)
            moved.append(Change(old, Pattern.from_index(pattern.shape, layer.index, pattern.granularity)))
    backends.hand_lists_on(moved)


def _overwrite(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Writes the second tensor of each pair where the first one lies, on a device in a launch for many of them."""
    # torch moves 16 bits as int16: it knows no arithmetic, and so no such launches, of uint16.
    signed = [[t.view(torch.int16) if t.dtype == torch.uint16 else t for t in pair] for pair in pairs]
    for dtype in {target.dtype for target, _ in signed}:
        some = [pair for pair in signed if pair[0].dtype == dtype]
        torch._foreach_copy_([target for target, _ in some], [source for _, source in some])
