"""What travels and what is averaged: a model's state with pruned weights in compact form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedsparse.errors import PatternError
from fedsparse.pattern.topology import Topology

__all__ = ["Weights"]


@dataclass(frozen=True, eq=False)
class Weights:
    """State of a model: compact values of its sparse weights and everything else dense.

    Attributes:
        topology: patterns of the sparse weights, by `"<module path>.weight"`.
        values: `(nnz,)` values of each weight in `topology`.
        dense: every other parameter and buffer, by state-dict name and in dense shape.
    """

    topology: Topology
    values: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.values.keys() != self.topology.keys():
            raise PatternError(
                f"values are given for {sorted(self.values)}, but the topology has {sorted(self.topology)}"
            )
        for name, pattern in self.topology.items():
            if self.values[name].shape != (pattern.nnz,):
                raise PatternError(
                    f"{name!r}: expected values of shape ({pattern.nnz},), got {tuple(self.values[name].shape)}"
                )
            if name in self.dense:
                raise PatternError(f"{name!r} is given both as sparse values and as a dense tensor")

    @property
    def nbytes(self) -> int:
        """Bytes of values and dense tensors, without positions."""
        return sum(t.numel() * t.element_size() for _, t in self.items())

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, sparse ones as their values."""
        yield from self.values.items()
        yield from self.dense.items()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Dense shape of every tensor, pruned or not, by name."""
        pruned = {name: pattern.shape for name, pattern in self.topology.items()}
        return pruned | {name: tuple(tensor.shape) for name, tensor in self.dense.items()}

    def require_shapes(self, other: "Weights", *, here: str, there: str) -> None:
        """Refuses `other` unless it is a state of the same model, whichever positions either keeps.

        Args:
            here, there: what the error calls these weights and the other ones.

        Raises:
            PatternError: one has a tensor that the other lacks, or in another shape.
        """
        mine, theirs = self.shapes, other.shapes
        for name in sorted(mine.keys() ^ theirs.keys()):
            raise PatternError(f"{name!r} is in {here if name in mine else there} only")
        for name, shape in mine.items():
            if shape != theirs[name]:
                raise PatternError(f"{name!r} has shape {shape} in {here}, but {theirs[name]} in {there}")

    def weight(self, name: str) -> Tensor:
        """Dense form of the weight `name`, sparse or not; zeros at pruned positions."""
        if name in self.topology:
            return self.topology[name].scatter(self.values[name])
        return self.dense[name]

    def moved_to(self, topology: Topology) -> "Weights":
        """The same weights under another topology: kept positions keep their value, grown ones are 0.

        A weight that `topology` leaves out becomes dense, one that it adds becomes sparse.

        Raises:
            PatternError: `topology` names a weight that is not here, or has another shape for it.
        """
        if topology.digest == self.topology.digest:
            return self
        values, dense = {}, dict(self.dense)
        for name, pattern in topology.items():
            if name in self.topology:
                values[name] = self.topology[name].moved(self.values[name], pattern)
            elif name in dense:
                values[name] = pattern.gather(dense.pop(name))
            else:
                raise PatternError(f"no weight named {name!r} to prune; there are {', '.join(dict(self.items()))}")
        for name in self.topology:
            if name not in topology:
                dense[name] = self.weight(name)
        return Weights(topology, values, dense)

    def with_dense(self, changed: Mapping[str, Tensor]) -> "Weights":
        """These weights with some dense tensors (biases, norm parameters, buffers) replaced."""
        unknown = [name for name in changed if name not in self.dense]
        if unknown:
            raise PatternError(f"no dense tensor named {unknown[0]!r}; there are {', '.join(self.dense)}")
        return replace(self, dense=dict(self.dense) | dict(changed))
