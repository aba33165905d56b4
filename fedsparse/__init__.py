"""Sparse training that stores, computes and sends only what is kept, and federated pruning on top of it."""

from fedsparse import functional, models, nn, wire
from fedsparse.allocator import keep_freed_memory
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
    MissingExtraError,
    PatternError,
    ShapeError,
    WireError,
)
from fedsparse.experiment import Result, load_config, resume, run
from fedsparse.measure import measure
from fedsparse.methods.base import register
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

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckpointError",
    "ClientError",
    "ConfigError",
    "DataError",
    "DataNotFoundError",
    "DoubleBackwardError",
    "FedsparseError",
    "InfeasibleDensityError",
    "MethodError",
    "MissingExtraError",
    "PatternError",
    "Result",
    "ShapeError",
    "WireError",
    "densify",
    "density",
    "functional",
    "keep_freed_memory",
    "load_config",
    "masks",
    "measure",
    "models",
    "nn",
    "plan",
    "register",
    "resume",
    "run",
    "set_backend",
    "set_masks",
    "sparsify",
    "topk_pruned_gradient",
    "wire",
]
