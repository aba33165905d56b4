"""What is kept: granularity, pattern of a weight, topology of a model, weights that travel."""

from fedsparse.pattern.granularity import Element, Granularity, parse
from fedsparse.pattern.pattern import Pattern, carried
from fedsparse.pattern.topology import Topology
from fedsparse.pattern.weights import Weights

__all__ = ["Element", "Granularity", "Pattern", "Topology", "Weights", "carried", "parse"]
