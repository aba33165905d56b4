"""Modelled arithmetic of local training; never presented as measured."""

from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.nn import SparseLayer

__all__ = ["forward_flops"]


def forward_flops(model: nn.Module, sample: Tensor) -> int:
    """Floating-point operations of one sample's forward pass in Linear and Conv2d layers.

    2 per kept weight and place it is used at: pixels of a picture, tokens of a text.

    Norms, activations and the loss are left out, as papers do. A training step is modelled as three forward passes.
    """
    total = 0

    def count(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, SparseLayer):
            kept, rows = module.nnz, module.pattern.shape[0]
        else:
            weight = module.get_parameter("weight")
            kept, rows = weight.numel(), weight.shape[0]
        total += 2 * kept * (output.numel() // rows)  # of a batch of one, whichever axes its places are in

    layers = [m for m in model.modules() if isinstance(m, SparseLayer | nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(sample.unsqueeze(0).to(next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
