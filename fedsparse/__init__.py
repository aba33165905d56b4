"""Sparse training that stores, computes and sends only what is kept, and federated pruning on top of it."""

from fedsparse import functional, nn
from fedsparse.errors import (
    BackendError,
    CheckpointError,
    ClientError,
    ConfigError,
    DataError,
    DataNotFoundError,
    DoubleBackwardError,
    FedsparseError,
    InfeasibleDensityError,
    MethodError,
    PatternError,
    ShapeError,
    WireError,
)
from fedsparse.measure import measure
from fedsparse.nn import (
    densify,
    density,
    masks,
    plan,
    set_backend,
    set_masks,
    sparsify,
    topk_pruned_gradient,
)
