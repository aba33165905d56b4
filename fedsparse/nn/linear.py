"""Fully connected layer with a sparse weight."""

from torch import Tensor, nn

from fedsparse.blocked import sizes_of
from fedsparse.errors import ShapeError
from fedsparse.nn.layer import SparseLayer
from fedsparse.pattern import Pattern, parse

__all__ = ["SparseLinear"]


class SparseLinear(SparseLayer):
    """`nn.Linear` whose weight `(out, in)` is stored as kept values and a pattern."""

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor, *, granularity: str = "element") -> "SparseLinear":
        """Sparse layer with the weights of `linear` that `mask` `(out, in)` keeps.

        Raises:
            PatternError: the mask does not fit the weight, or the granularity is unknown.
        """
        pattern = Pattern.from_mask(mask, parse(granularity), device=linear.weight.device)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer = cls(pattern, pattern.gather(linear.weight.detach()), bias)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """`nn.Linear` that computes the same function."""
        out, inputs = self.pattern.shape
        linear = nn.Linear(inputs, out, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` -> `(..., out)`."""
        out, inputs = self._pattern.shape
        sizes = sizes_of(x)
        if not sizes or sizes[-1] != inputs:
            raise ShapeError(f"SparseLinear expects inputs of shape (..., {inputs}), got {sizes}")
        if len(sizes) == 2:
            return self.product(x, ())
        return self.product(x.reshape(-1, inputs), ()).reshape(*sizes[:-1], out)
