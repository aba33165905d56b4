"""Lists that backends derive from patterns: built once, kept as long as the pattern, written anew in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fedsparse.pattern import Pattern

__all__ = ["Change", "PatternLists", "fit_in_place"]

Lists = TypeVar("Lists", bound=tuple[Any, ...])
Key = tuple[object, ...]


class Change(NamedTuple):
    """A pattern that takes the place of another one.

    Attributes:
        column: index tensor of the old one.
        pattern: the new one.
    """

    column: Tensor
    pattern: Pattern


@dataclass(frozen=True, eq=False)
class PatternLists(Generic[Lists]):
    """Named tuples of tensors and numbers, by the pattern's index tensor `column` and what else they depend on."""

    _kept: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, pattern: Pattern, key: Key, build: Callable[[Pattern], Lists]) -> Lists:
        """The lists of a pattern, built at the first call. `build` must not hold the pattern."""
        kept = self._of(pattern.column, make=True)
        if key not in kept:
            kept[key] = _Entry(build(pattern), build)
        return kept[key].lists

    def of(self, column: Tensor) -> dict[Key, Lists]:
        """Everything derived from `column`."""
        return {key: entry.lists for key, entry in self._of(column).items()}

    def hand_on(self, change: Change, lists: Mapping[Key, Lists]) -> None:
        """Keeps `lists` of the new pattern, which has none, under keys that the old one has."""
        old = self._of(change.column)
        self._kept[change.pattern.column] = {key: _Entry(new, old[key].build) for key, new in lists.items()}

    def rewrite(self, changes: Sequence[Change]) -> list[bool]:
        """Builds everything derived from each `column` anew for its new pattern, into the same memory.

        Returns:
            False for each where a list would need another size or number: then nothing of it has been written.
        """
        return [self._rewrite(*change) for change in changes]

    def _rewrite(self, column: Tensor, pattern: Pattern) -> bool:
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

    def _of(self, column: Tensor, *, make: bool = False) -> "dict[Key, _Entry[Lists]]":
        found: dict[Key, _Entry[Lists]] = self._kept.get(column, {})
        if make and not found:
            self._kept[column] = found
        return found


@dataclass(frozen=True, eq=False)
class _Entry(Generic[Lists]):
    lists: Lists
    build: Callable[[Pattern], Lists]


def fit_in_place(old: Sequence[object], new: Sequence[object]) -> bool:
    """Whether the tensors of `new` could be written where those of `old` lie, and everything else is equal."""

    def fits(a: object, b: object) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return (a.shape, a.dtype) == (b.shape, b.dtype)
        return a == b

    return all(fits(a, b) for a, b in zip(old, new, strict=True))
