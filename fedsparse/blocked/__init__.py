"""Networks whose activations stay in the layout of the cpu kernels from the first sparse layer to the last."""

from fedsparse.blocked import rules as _rules  # noqa: F401  declares the rules
from fedsparse.blocked.fused import fuse, unfuse
from fedsparse.blocked.pruned import hold_pruned, hold_whole
from fedsparse.blocked.region import keep_blocked, leave_blocked
from fedsparse.blocked.tensor import Blocked, plain, sizes_of

__all__ = [
    "Blocked",
    "fuse",
    "hold_pruned",
    "hold_whole",
    "keep_blocked",
    "leave_blocked",
    "plain",
    "sizes_of",
    "unfuse",
]
