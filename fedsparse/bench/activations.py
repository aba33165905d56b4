"""Packing pruned activations against copying them, and against torch's boolean indexing."""

from collections.abc import Mapping

import torch

from fedsparse.backends.activation import Pruning, pack, select, unpack
from fedsparse.backends.cpu import to_blocked
from fedsparse.backends.term import Term
from fedsparse.bench.timing import Timing, interleave
from fedsparse.errors import BackendError

__all__ = ["packing_times"]


def packing_times(
    shape: tuple[int, int, int, int] = (64, 64, 32, 32), pruning: Pruning | None = None, *, rounds: int = 15
) -> Mapping[str, Timing]:
    """Seconds to copy, select, pack and unpack one layer's activations, in turn; every way reads all of them.

    Args:
        shape: (batch, channels, height, width).
        pruning: what is kept; 0.3 of each image unless given.
        rounds: of each way, counted.

    Returns:
        Times of `copy` (to memory that is there, as memcpy does), `select`, `pack`, `unpack` and torch's
        `masked_select` of the same elements.

    Raises:
        BackendError: something is not unpacked as it was packed.
    """
    pruning = pruning or Pruning(0.3)
    x = to_blocked(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    there, batch = torch.empty_like(x), shape[0]
    term = Term(x, cuts=select(Term(x), batch, pruning))
    packed = pack(term, batch, pruning.dtype)
    kept = unpack(packed, tuple(x.shape))
    wanted = torch.where(kept != 0, x, 0.0)
    if not torch.equal(kept, wanted if pruning.dtype is None else wanted.to(pruning.dtype).float()):
        raise BackendError("activations are not unpacked as they were packed")
    mask = kept != 0
    return interleave(
        {
            "copy": lambda: there.copy_(x),
            "select": lambda: select(Term(x), batch, pruning),
            "pack": lambda: pack(term, batch, pruning.dtype),
            "unpack": lambda: unpack(packed, tuple(x.shape)),
            "masked_select": lambda: x[mask],
        },
        rounds=rounds,
    )
