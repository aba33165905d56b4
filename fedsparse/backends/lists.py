"""Lists that backends derive from patterns: built once, kept as long as the pattern, written anew in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedsparse.pattern import Pattern

__all__ = ["PatternLists", "fit_in_place"]

Lists = TypeVar("Lists", bound=tuple[Any, ...])


@dataclass(frozen=True, eq=False)
class PatternLists:
    """Named tuples of tensors and numbers, by the pattern's index tensor `column` and what else they depend on."""

    _kept: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, pattern: Pattern, key: tuple[object, ...], build: Callable[[Pattern], Lists]) -> Lists:
        """The lists of a pattern, built at the first call. `build` must not hold the pattern."""
        kept = self._of(pattern.column, make=True)
        if key not in kept:
            kept[key] = _Entry(build(pattern), build)
        return cast(Lists, kept[key].lists)

    def rewrite(self, column: Tensor, pattern: Pattern) -> bool:
        """Builds everything derived from `column` anew for `pattern`, into the same memory.

        Returns:
            False where a list would need another size or number: then nothing has been written.
        """
        entries = [*self._of(column).values()]
        built = [entry.build(pattern) for entry in entries]
        if not all(fit_in_place(entry.lists, new) for entry, new in zip(entries, built, strict=True)):
            return False
        for entry, new in zip(entries, built, strict=True):
            for old, part in zip(entry.lists, new, strict=True):
                if isinstance(old, Tensor):
                    old.copy_(part)
        return True

    def tensors(self, column: Tensor) -> list[Tensor]:
        """All tensors derived from `column`."""
        return [part for entry in self._of(column).values() for part in entry.lists if isinstance(part, Tensor)]

    def _of(self, column: Tensor, *, make: bool = False) -> "dict[tuple[object, ...], _Entry]":
        found: dict[tuple[object, ...], _Entry] = self._kept.get(column, {})
        if make and not found:
            self._kept[column] = found
        return found


@dataclass(frozen=True, eq=False)
class _Entry:
    lists: tuple[Any, ...]
    build: Callable[[Pattern], tuple[Any, ...]]


def fit_in_place(old: Sequence[object], new: Sequence[object]) -> bool:
    """Whether the tensors of `new` could be written where those of `old` lie, and everything else is equal."""

    def fits(a: object, b: object) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return (a.shape, a.dtype) == (b.shape, b.dtype)
        return a == b

    return all(fits(a, b) for a, b in zip(old, new, strict=True))
