"""Optimisers whose steps are single passes over the kept values."""

from fedsparse.optim.sgd import FlatSGD

__all__ = ["FlatSGD"]
