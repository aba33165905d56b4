"""What optimisers share: the loss of a closure, and parameters that go into one launch."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch

__all__ = ["alike", "evaluated"]

T = TypeVar("T")


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What a step's closure returns, computed with gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def alike(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of equal key together, in the order in which keys come first."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())
