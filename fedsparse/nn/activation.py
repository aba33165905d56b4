"""Scaled activation pruning of a model."""

from typing import TypeVar

import torch
from torch import nn

from fedsparse.backends.activation import Pruning, Rule
from fedsparse.blocked import hold_pruned, hold_whole
from fedsparse.errors import ConfigError
from fedsparse.nn.surgery import sparse_layers

__all__ = ["prune_activations"]

_Model = TypeVar("_Model", bound=nn.Module)


def prune_activations(
    model: _Model, keep: float | None, *, rule: Rule = "tile", dtype: torch.dtype | None = None
) -> _Model:
    """Lets the sparse layers of `model` save only the largest elements of their inputs for the backward pass, in place.

    Scaled activation pruning (Huang et al., FedMef, CVPR 2024, arXiv 2403.14737): outputs, gradients of inputs and
    gradients of biases are exact; the gradient of a layer's weights is that of the input with all but the
    k = round(keep * n) elements of largest magnitude set to zero, ties to the lowest index. What is saved is one bit
    for each element and the kept values; exact zeros take no more than their bit, so `keep=1.0` is exact and saves
    what a ReLU has zeroed. Applies in training mode while gradients are recorded; otherwise nothing changes.

    Inside a network that keeps its activations blocked (what `sparsify` returns), no dense copy of the input exists in
    the backward pass, ReLUs hold one bit for each element, and a layer that reads relu(norm(x)) shares what the norm
    holds. Batch norms hold their input, whole, whatever `keep` is; with `dtype=torch.bfloat16` they hold it normalised
    in bfloat16, so that their gradients, and the inputs that layers behind them recompute, are of bfloat16 accuracy.
    Other dtypes and devices, and layers called by themselves, are pruned alike, but restore their own input for the
    length of their backward pass, and torch's functions around them save what they always do.

    On a CUDA device kernels mark and pack; a step captured in a CUDA graph saves nothing with `keep=1.0`, as it cannot
    ask how much is zero. Where Triton is installed, batch norms and ReLUs are computed by its kernels from the
    beginning to the end of the model's forward pass, as far as their tensors are contiguous and of 16 or 32 bits: a
    batch norm in training mode holds its input (or the same in bfloat16, as above) and two numbers a channel, a ReLU
    behind it nothing, a layer that reads that ReLU one bit for each element; any other ReLU holds one bit for each
    element. Layers that read the same ReLU share what they keep. Running statistics are torch's up to rounding. Second
    derivatives of these functions are refused. Parts under `torch.utils.checkpoint`, which run again when no model
    does, are torch's.

    Dense layers are left alone. Compiled models break their graph at each pruned layer, and what is compiled computes
    norms and ReLUs as torch does.

    A search for gradients at pruned positions (`topk_pruned_gradient`, `dense_gradients`) sees whole inputs all the
    same: weights are chosen by the gradient of the network itself; the paper does not say which it takes. A layer that
    is searched holds its input without the exact zeros, or shares it with its norm as above (then in bfloat16, if norms
    hold that), and prunes it when its backward pass begins.

    Deviations from the paper: `rule="tile"`, and k rounded to the nearest number where the paper's code takes the one
    below. To leave out a layer, the stem that reads raw pictures say, undo it there:
    `prune_activations(model.conv1, None)`.

    Args:
        model: a sparse layer, or a module with some.
        keep: kept share of each layer's input, in (0, 1]; None undoes pruning in the model and its parts.
        rule: `global` keeps the largest of a whole batch, as the paper does; `tile` the same number of each image (for
            linear layers, of each row), so that what is kept of an image does not depend on its neighbours.
        dtype: of the kept values: float32 or bfloat16; None leaves that of the activations.

    Returns:
        The same model.

    Raises:
        ConfigError: keep, rule or dtype cannot be used, or the model has no sparse layer.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no sparse layer whose input could be pruned; sparsify it first")
    pruning = None if keep is None else Pruning(keep, rule, dtype)
    for layer in layers.values():
        layer.activation_pruning = pruning
    return hold_whole(model) if pruning is None else hold_pruned(model, pruning)
