"""The patterns of a whole model."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property

from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern.granularity import Element, Granularity
from fedsparse.pattern.pattern import Pattern

__all__ = ["Topology"]


class Topology(Mapping[str, Pattern]):
    """Immutable mapping from a weight's name, `"<module path>.weight"`, to its pattern."""

    def __init__(self, patterns: Mapping[str, Pattern] | None = None) -> None:
        self._patterns = dict(patterns or {})

    @classmethod
    def from_masks(cls, masks: Mapping[str, Tensor], granularity: Granularity = Element()) -> "Topology":
        """Topology of bool masks of dense shape, by weight name."""
        return cls({name: Pattern.from_mask(mask, granularity) for name, mask in masks.items()})

    def __getitem__(self, name: str) -> Pattern:
        return self._patterns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._patterns)

    def __len__(self) -> int:
        return len(self._patterns)

    @property
    def nnz(self) -> int:
        """Kept positions of all weights."""
        return sum(p.nnz for p in self.values())

    @property
    def counts(self) -> dict[str, int]:
        """K_l: kept positions of each weight."""
        return {name: p.nnz for name, p in self.items()}

    @cached_property
    def digest(self) -> str:
        """Hash of all names and patterns; the identity of a topology on the wire. 32 hex digits."""
        state = hashlib.blake2b(digest_size=16)
        for name, pattern in self.items():
            state.update(f"{name} {pattern.digest}\n".encode())
        return state.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def masks(self) -> dict[str, Tensor]:
        """Bool masks of dense shape, by weight name."""
        return {name: p.mask() for name, p in self.items()}

    def with_patterns(self, changed: Mapping[str, Pattern]) -> "Topology":
        """This topology with some patterns replaced, in the same order."""
        unknown = [name for name in changed if name not in self._patterns]
        if unknown:
            raise PatternError(f"no weight named {unknown[0]!r} in this topology; it has {', '.join(self) or 'none'}")
        return Topology(self._patterns | dict(changed))

    def changed_positions(self, other: "Topology") -> int:
        """Number of positions kept by exactly one of the two. A weight absent from one is dense there."""
        return sum(self.changes(other).values())

    def changes(self, other: "Topology") -> dict[str, int]:
        """`changed_positions` of each weight that either prunes, this topology's own first."""
        changed = {}
        for name in dict.fromkeys((*self, *other)):
            mine, theirs = self.get(name), other.get(name)
            if mine is None or theirs is None:
                present = mine or theirs
                assert present is not None
                changed[name] = present.size - present.nnz
            else:
                shared = mine.nnz if mine.digest == theirs.digest else int((mine.carry_to(theirs) >= 0).sum())
                changed[name] = mine.nnz + theirs.nnz - 2 * shared
        return changed
