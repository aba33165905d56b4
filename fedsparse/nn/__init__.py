"""Sparse layers, and the surgery that puts them into any model."""

from fedsparse.nn.activation import prune_activations
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.fold import Joint, fold, require_foldable, side_by_side, unfold
from fedsparse.nn.gradients import dense_gradients
from fedsparse.nn.graph import CapturedStep, capture_step
from fedsparse.nn.layer import SparseLayer
from fedsparse.nn.linear import SparseLinear
from fedsparse.nn.norm_free import without_batch_norm
from fedsparse.nn.normalised import GAMMA, NormalisedConv2d, SparseNormalisedConv2d
from fedsparse.nn.norms import fuse_norms
from fedsparse.nn.plan import Conversion, Plan, PlannedLayer, plan
from fedsparse.nn.probe import topk_pruned_gradient
from fedsparse.nn.surgery import (
    densify,
    density,
    masks,
    read_weights,
    set_backend,
    set_masks,
    sparse_layers,
    sparsify,
    topology,
    write_weights,
)

__all__ = [
    "GAMMA",
    "CapturedStep",
    "Conversion",
    "Joint",
    "NormalisedConv2d",
    "Plan",
    "PlannedLayer",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseNormalisedConv2d",
    "capture_step",
    "dense_gradients",
    "densify",
    "density",
    "fold",
    "fuse_norms",
    "masks",
    "plan",
    "prune_activations",
    "read_weights",
    "require_foldable",
    "set_backend",
    "set_masks",
    "side_by_side",
    "sparse_layers",
    "sparsify",
    "topk_pruned_gradient",
    "topology",
    "unfold",
    "without_batch_norm",
    "write_weights",
]
