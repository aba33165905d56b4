"""Scores from gradients of the loss before training: SNIP and GraSP.

Both look at a plain dense model in training mode as batch norm sees it (statistics of the batch, since those of an
untrained model say nothing) and in evaluation mode as dropout does. The model itself is left as it is.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.errors import ConfigError
from fedsparse.pruning.eligible import prunable

__all__ = ["Batch", "Loss", "grasp", "snip"]

Batch = tuple[Tensor, Tensor]  # samples `(b, ...)` and their targets `(b, ...)`
Loss = Callable[[Tensor, Tensor], Tensor]  # mean over the samples, from outputs and targets


def snip(model: nn.Module, batches: Sequence[Batch], *, loss: Loss = F.cross_entropy) -> dict[str, Tensor]:
    """|w dL/dw|: how much the loss depends on the presence of a weight.

    Lee et al., ICLR 2019, arXiv:1810.02340, Eq. 5 without its division by the sum of all scores, which changes no
    order. L is the mean loss over all samples of all batches, and the absolute value is taken of that mean.

    Args:
        model: plain and dense; pruned weights may be 0.
        batches: samples and targets on any device, each of two samples or more where the model has batch norm.
        loss: mean loss of outputs and targets.

    Returns:
        A score shaped like the weight for every Linear and Conv2d weight, by name.

    Raises:
        ConfigError: there is no batch.
    """
    probe = _probe(model)
    weights = prunable(probe, "none")
    gradients = _mean_gradients(probe, weights, batches, loss)
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}


def grasp(
    model: nn.Module, batches: Sequence[Batch], *, loss: Loss = F.cross_entropy, temperature: float = 200.0
) -> dict[str, Tensor]:
    """w (H g), with sign: how much gradient flow a weight carries; g and H are gradient and Hessian of the loss.

    Removing a weight changes |g|^2 by about -2 w (H g), so the largest are kept. Wang et al., ICLR 2020,
    arXiv:2002.07376, Eq. 8, has the opposite sign and removes the largest: the same rule. H g is computed as the
    gradient of <g, g'> with g held fixed, with all Linear and Conv2d weights as variables.

    Args:
        temperature: by which outputs are divided before the loss, as in the authors' code.

    Other arguments, result and errors as `snip`.
    """

    def cooled(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs / temperature, targets)

    probe = _probe(model)
    weights = prunable(probe, "none")
    flow = _mean_gradients(probe, weights, batches, cooled)
    products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y, share in _shares(probe, batches):
        gradients = _gradients(cooled(probe(x), y), weights, create_graph=True)
        along = torch.stack([(gradients[name] * flow[name]).sum() for name in weights]).sum()
        for name, product in _gradients(along, weights).items():
            products[name] += share * product
    return {name: weight.detach() * products[name] for name, weight in weights.items()}


def _probe(model: nn.Module) -> nn.Module:
    """A copy to compute gradients on: batch norms use batch statistics, nothing is dropped."""
    probe = copy.deepcopy(model).requires_grad_(True).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return probe


def _mean_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Gradients of the mean loss over all samples."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y, share in _shares(model, batches):
        for name, gradient in _gradients(loss(model(x), y), weights).items():
            total[name] += share * gradient
    return total


def _gradients(value: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    """Gradients of a scalar; zeros for weights it does not depend on."""
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))


def _shares(model: nn.Module, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Each batch where the model is, and its share of all samples."""
    samples = sum(len(y) for _, y in batches)
    if not samples:
        raise ConfigError("scores from gradients need samples, got none; pass at least one batch")
    device = next(model.parameters()).device
    for x, y in batches:
        yield x.to(device), y.to(device), len(y) / samples
