"""Builds the dense weight for the length of one op: any dtype and device, and the winner above break-even density."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends.base import Backend, Case, Geometry, Gradients
from fedsparse.pattern import Pattern

__all__ = ["MaskedBackend"]

# Positions whose gradients are computed at a time when looking for the largest.
_CHUNK = 1 << 16


class MaskedBackend:
    """Torch's dense kernels on a weight that exists during the op only; values are still all that is stored."""

    name = "masked"

    def refuse(self, case: Case) -> str | None:
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        weight = pattern.scatter(values)
        if case.geometry is None:
            return F.linear(x, weight, bias)
        g = case.geometry
        return F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        weight = pattern.scatter(values)
        if case.geometry is None:
            grad_x = grad @ weight if want[0] else None
            grad_weight = grad.T @ x if want[1] else None
        else:
            grad_x, grad_weight = _convolution_backward(grad, x, weight, case.geometry, want)
        return Gradients(grad_x, None if grad_weight is None else pattern.gather(grad_weight))

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        columns = pattern.size // pattern.shape[0]
        groups = case.geometry.groups if case.geometry else 1
        rows_per_group = pattern.shape[0] // groups
        step = max(1, min(rows_per_group, max(_CHUNK, k) // columns))
        positions, gradients = grad.new_empty(0, dtype=torch.int64), grad.new_empty(0)
        for group in range(groups):
            for first in range(group * rows_per_group, (group + 1) * rows_per_group, step):
                last = min(first + step, (group + 1) * rows_per_group)
                here, found = self._pruned_rows(grad, x, pattern, first, last, group, case)
                positions, gradients = torch.cat([positions, here]), torch.cat([gradients, found])
                # Candidates stand by rising position, so a stable sort settles ties as promised.
                best = torch.sort(gradients.abs(), descending=True, stable=True).indices[:k].sort().values
                positions, gradients = positions[best], gradients[best]
        order = torch.sort(gradients.abs(), descending=True, stable=True).indices
        return positions[order], gradients[order]

    @staticmethod
    def _pruned_rows(
        grad: Tensor, x: Tensor, pattern: Pattern, first: int, last: int, group: int, case: Case
    ) -> tuple[Tensor, Tensor]:
        """Flat positions and gradients of the pruned weights of rows [first, last), all in one group."""
        columns = pattern.size // pattern.shape[0]
        if case.geometry is None:
            dense = grad[:, first:last].T @ x
        else:
            g, inputs = case.geometry, pattern.shape[1]
            alone = Geometry(g.stride, g.padding, g.dilation)
            like = x.new_empty(last - first, *pattern.shape[1:])
            part = x[:, group * inputs : (group + 1) * inputs]
            found = _convolution_backward(grad[:, first:last], part, like, alone, (False, True))[1]
            assert found is not None
            dense = found
        pruned = torch.ones((last - first) * columns, dtype=torch.bool, device=grad.device)
        begin, end = int(pattern.row_start[first]), int(pattern.row_start[last])
        row = pattern.rows[begin:end] - first
        pruned[row * columns + pattern.column[begin:end].to(torch.int64)] = False
        here = pruned.nonzero().squeeze(1)
        return here + first * columns, dense.reshape(-1)[here]


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, g: Geometry, want: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, g.stride, g.padding, g.dilation, False, [0, 0], g.groups, [*want, False]
    )
    return grad_x, grad_weight


_: Backend = MaskedBackend()
