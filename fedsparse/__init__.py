"""Sparse training that stores, computes and sends only what is kept, and federated pruning on top of it."""

from typing import TYPE_CHECKING, Any

from fedsparse import functional, models, nn, optim, wire
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

if TYPE_CHECKING:
    from fedsparse.experiment.config import load_config
    from fedsparse.experiment.run import resume, run
    from fedsparse.experiment.session import Result

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
    "optim",
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

# Looked up when they are used: they bring the packages that read and check configurations, which the engine does not
# need, and a machine that only computes may not have.
_OF_EXPERIMENTS = ("Result", "load_config", "resume", "run")

if not TYPE_CHECKING:  # type checkers see the imports above

    def __getattr__(name: str) -> Any:
        if name not in _OF_EXPERIMENTS:
            raise AttributeError(f"module 'fedsparse' has no attribute {name!r}")
        from fedsparse import experiment

        return getattr(experiment, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
