"""Which weights to keep: pure functions on tensors, shapes and patterns."""

from fedsparse.pruning.allocate import allocate, budget, densities
from fedsparse.pruning.eligible import prunable
from fedsparse.pruning.gain import by_gain
from fedsparse.pruning.gradual import gradually
from fedsparse.pruning.masks import globally, layerwise
from fedsparse.pruning.schedule import adjusts, cosine_share, density_path, swap_counts
from fedsparse.pruning.score import magnitude, random
from fedsparse.pruning.select import smallest, top
from fedsparse.pruning.sensitivity import grasp, snip
from fedsparse.pruning.swap import swap, swap_all
from fedsparse.pruning.synflow import synflow
from fedsparse.pruning.units import (
    exchange,
    highest,
    kept_units,
    likewise,
    magnitudes,
    magnitudes_at,
    places_of,
    refilled,
    replaceable,
    whole,
)

__all__ = [
    "adjusts",
    "allocate",
    "budget",
    "by_gain",
    "cosine_share",
    "densities",
    "density_path",
    "exchange",
    "globally",
    "gradually",
    "grasp",
    "highest",
    "kept_units",
    "layerwise",
    "likewise",
    "magnitude",
    "magnitudes",
    "magnitudes_at",
    "places_of",
    "prunable",
    "random",
    "refilled",
    "replaceable",
    "smallest",
    "snip",
    "swap",
    "swap_all",
    "swap_counts",
    "synflow",
    "top",
    "whole",
]
