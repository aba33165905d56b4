"""Batch norms of a model on a CUDA device, fused with the residual sums and ReLUs behind them."""

from typing import TypeVar

from torch import nn

from fedsparse.blocked import fuse, unfuse

__all__ = ["fuse_norms"]

_Model = TypeVar("_Model", bound=nn.Module)


def fuse_norms(model: _Model, fused: bool = True) -> _Model:
    """Leaves batch norms and ReLUs of `model` on a CUDA device to Triton kernels, in place.

    A batch norm and the ReLU behind it, if there is one, then take two launches going forward and one going back, each
    one more where channels are few and long (of more than 32768 and 16384 elements). A sum of the norm and a tensor
    like it, with a ReLU behind that, takes none of its own either: `relu(norm(x) + shortcut)`. The norm holds its input
    and two numbers a channel for the backward pass, the ReLU behind it nothing; any other ReLU holds one bit for each
    element, which its gradient reads. Numbers are torch's up to rounding, running statistics too, which have moved when
    the norm returns, as has its number of batches.

    Applies from the beginning to the end of the model's forward pass, in training mode, while gradients are recorded,
    where Triton is installed, to tensors of 16 or 32 bits that are contiguous or batch-innermost. All else stays
    torch's: evaluation, norms in evaluation mode, tensors that are channels last, float64, what is compiled, traced,
    transformed by `torch.func`, or run again by `torch.utils.checkpoint`. Until a norm's result is used, its input and
    what was added to it must not be changed in place. Second derivatives of these functions are refused. A step may be
    captured (`capture_step`).

    On the CPU nothing changes: networks that `sparsify` returns fuse norms, ReLUs and residual sums by themselves.

    `prune_activations` brings these kernels along, whether norms are fused or not, and says what they hold; the two may
    come and go in any order. A network that `fold` makes of fused ones is fused.

    Args:
        model: any module, sparse or dense.
        fused: False undoes it in the model and its parts.

    Returns:
        The same model.
    """
    return fuse(model) if fused else unfuse(model)
