"""Networks without batch norm."""

import hashlib
from typing import TypeVar

import torch
from torch import nn

from fedsparse.nn.normalised import GAMMA, NormalisedConv2d

__all__ = ["without_batch_norm"]

_Model = TypeVar("_Model", bound=nn.Module)


def without_batch_norm(model: _Model, *, gamma: float = GAMMA, generator: torch.Generator | None = None) -> _Model:
    """Takes the batch norms out of a dense network, in place, and lets its convolutions normalise their own filters.

    Every batch norm becomes `nn.Identity`, every `nn.Conv2d` a `NormalisedConv2d` with new weights, normal with the
    variance of He et al. (2015) by outputs, and its own bias, if it has one. Everything else, residual sums and the
    linear head included, stays. After FedMef (Huang et al., CVPR 2024, arXiv:2403.14737), as its development code has
    it.

    Args:
        model: dense; on the `meta` device it gets no weights. Convolutions of a single weight a filter stay.
        gamma: factor of the normalised weights.
        generator: draws the weights; by default one whose seed follows from the model's own weights, so that the same
            network becomes the same again.

    Returns:
        The same model.
    """
    generator = generator or _derived(model)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _put(model, path, nn.Identity())
    made: dict[nn.Conv2d, NormalisedConv2d] = {}  # a module in several places stays one
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.Conv2d) or module.weight[0].numel() < 2:
            continue
        if module not in made:
            made[module] = NormalisedConv2d.of(module, gamma=gamma)
            if not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        _put(model, path, made[module])
    return model


def _derived(model: nn.Module) -> torch.Generator:
    state = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        if not parameter.is_meta:
            state.update(parameter.detach().cpu().double().numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(state.digest(), "little") >> 1)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
