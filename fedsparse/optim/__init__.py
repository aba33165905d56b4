"""Optimisers whose steps are single passes over the kept values."""

from fedsparse.optim.adamw import FlatAdamW
from fedsparse.optim.sgd import FlatSGD

__all__ = ["FlatAdamW", "FlatSGD"]
