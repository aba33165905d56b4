"""Flower, the extra `fedsparse[flower]`: an engine over its messages, and sparse messages for apps of its own.

`flwr` is imported by the modules that need it alone, and by the two names here when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsparse.flower.sparse import SparseStrategy, sparse_mod

__all__ = ["SparseStrategy", "sparse_mod"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fedsparse.flower.sparse"), name)
