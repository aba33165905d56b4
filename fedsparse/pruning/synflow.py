"""SynFlow: scores without data.  Tanaka et al., NeurIPS 2020, arXiv:2006.05467."""

import copy

import torch
from torch import Tensor, nn

from fedsparse.pruning.eligible import prunable

__all__ = ["synflow"]


def synflow(model: nn.Module, sample_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """|w| dR/d|w|: the flow through a weight, R being the sum of outputs for ones in and |parameters| inside.

    The scores of any cut through a network without biases add up to R, so no layer is emptied while others are full;
    meant for many small steps, `gradually`. Batch norms are in evaluation mode. Computed in float64, in which products
    over the layers of a deep network stay in range.

    Args:
        model: plain and dense; pruned weights may be 0. It is left as it is.
        sample_shape: of one input, without the batch.

    Returns:
        A float64 score shaped like the weight for every Linear and Conv2d weight, by name.
    """
    flow = copy.deepcopy(model).double().requires_grad_(True).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.abs_()
    weights = prunable(flow, "none")
    ones = torch.ones(1, *sample_shape, dtype=torch.float64, device=next(flow.parameters()).device)
    gradients = torch.autograd.grad(flow(ones).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
    return {
        name: weight.detach() * gradient for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
