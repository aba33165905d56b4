"""Which weights to keep: pure functions on tensors, shapes and patterns."""

from fedsparse.pruning.allocate import allocate, budget, densities
from fedsparse.pruning.eligible import prunable
from fedsparse.pruning.gain import by_gain
from fedsparse.pruning.schedule import adjusts, cosine_share, swap_counts
from fedsparse.pruning.score import magnitude, random
from fedsparse.pruning.select import globally, layerwise, top
from fedsparse.pruning.swap import swap

__all__ = [
    "adjusts",
    "allocate",
    "budget",
    "by_gain",
    "cosine_share",
    "densities",
    "globally",
    "layerwise",
    "magnitude",
    "prunable",
    "random",
    "swap",
    "swap_counts",
    "top",
]
