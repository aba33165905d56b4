"""The largest gradients of pruned weights, caught during a backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.layer import SparseLayer
from fedsparse.ops import topk_pruned

__all__ = ["PrunedGradients", "topk_pruned_gradient"]
