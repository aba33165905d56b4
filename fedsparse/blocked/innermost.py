"""Batch norms of a network whose activations lie batch-innermost: torch itself would make contiguous copies of them.

To torch such a tensor is one contiguous picture, whose pixels are those of all samples; channels stay where they are,
so statistics and gradients are of the same numbers, summed in another order.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedsparse.backends import BATCH_INNERMOST
from fedsparse.blocked.fusing import ours

__all__ = ["Innermost"]


class Innermost(TorchFunctionMode):
    """Inside it, batch norms return activations as they lie, but where `Frugal` carries them out."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if function is F.batch_norm and args and _lies_innermost(args[0]) and not ours():
            picture = BATCH_INNERMOST.in_memory(args[0]).unsqueeze(0)
            return F.batch_norm(picture, *args[1:], **named).squeeze(0).movedim(-1, 0)
        return function(*args, **named)


def _lies_innermost(x: Any) -> bool:
    """Whether x is an ordinary tensor that lies so, and not contiguous as well."""
    return type(x) is Tensor and x.dim() > 1 and not x.is_contiguous() and BATCH_INNERMOST.holds(x)
