"""What is kept: granularity, pattern of a weight, topology of a model, weights that travel."""

from fedsparse.pattern.granularity import NM, Block, Channel, Element, Granularity, Vector, parse
from fedsparse.pattern.pattern import Pattern, carried, exchange_all
from fedsparse.pattern.tiling import Tiling
from fedsparse.pattern.together import Move, carry_all
from fedsparse.pattern.topology import Topology
from fedsparse.pattern.weights import Weights

__all__ = [
    "NM",
    "Block",
    "Channel",
    "Element",
    "Granularity",
    "Move",
    "Pattern",
    "Tiling",
    "Topology",
    "Vector",
    "Weights",
    "carried",
    "carry_all",
    "exchange_all",
    "parse",
]
