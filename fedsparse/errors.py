"""Every exception fedsparse raises on purpose.

    FedsparseError
    |-- ConfigError              (ValueError)      a setting is unknown, of the wrong type or out of range
    |-- DataError                (ValueError)      a data file or a partition cannot be used
    |   `-- DataNotFoundError    (FileNotFoundError)  the folder or file is not there
    |-- PatternError             (ValueError)      a mask does not fit its weight, granularity or another mask
    |-- InfeasibleDensityError   (ValueError)      no mask can reach the asked density
    |-- ShapeError               (ValueError)      a tensor handed to an op has the wrong shape, dtype or device
    |-- BackendError             (RuntimeError)    the asked backend cannot compute this case
    |-- DoubleBackwardError      (NotImplementedError)  a second derivative of a sparse op was asked for
    |-- WireError                (ValueError)      bytes that are not a valid message
    |-- MethodError              (ValueError)      a method is unknown, registered twice or breaks its contract
    |-- ClientError              (RuntimeError)    too few clients of a cohort delivered a usable update
    |-- CheckpointError          (RuntimeError)    a run directory cannot be written, read or resumed
    `-- MissingExtraError        (ImportError)     an optional package is needed and not installed

Each class also derives from the built-in it specialises, so `except ValueError` keeps working.
"""

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
    "ShapeError",
    "WireError",
]


class FedsparseError(Exception):
    """Base of all errors raised on purpose by fedsparse."""


class ConfigError(FedsparseError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FedsparseError, ValueError):
    """A data file or a partition cannot be used as asked."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data folder or file is not where it was looked for."""


class PatternError(FedsparseError, ValueError):
    """A mask or pattern does not fit its weight, its granularity or another pattern."""


class InfeasibleDensityError(FedsparseError, ValueError):
    """No mask can reach the asked density; the message and `smallest` give the smallest that can."""

    def __init__(self, message: str, *, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


class ShapeError(FedsparseError, ValueError):
    """A tensor handed to an op has the wrong shape, dtype or device."""


class BackendError(FedsparseError, RuntimeError):
    """The asked backend is not available or cannot compute this case."""


class DoubleBackwardError(FedsparseError, NotImplementedError):
    """A second derivative of a sparse op was asked for."""


class WireError(FedsparseError, ValueError):
    """Bytes that are not a valid message: damaged, truncated, oversized or of another version."""


class MethodError(FedsparseError, ValueError):
    """A method is unknown, registered twice or breaks its contract."""


class ClientError(FedsparseError, RuntimeError):
    """Too few clients of a cohort delivered a usable update."""


class CheckpointError(FedsparseError, RuntimeError):
    """A run directory cannot be written, read or resumed."""


class MissingExtraError(FedsparseError, ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""
