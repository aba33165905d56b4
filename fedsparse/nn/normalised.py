"""Convolutions that normalise their own filters and so need no batch norm, dense and sparse.

The weight is multiplied as w^ = gamma g_o (w - mu_o) / sqrt(max(N v_o, 1e-4)) m, with the mean mu_o and the unbiased
variance v_o of each filter o over its N = in * kh * kw positions, pruned ones included as zeros, a learnable gain g_o
per filter and the mask m. The mask comes last because centring moves pruned entries off zero. Scaled weight
standardisation of Brock et al., ICLR 2021, arXiv:2101.08692, under a mask as in FedMef (Huang et al., CVPR 2024,
arXiv:2403.14737); evidence for the order of mask and statistics is the development code of FedMef's authors.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from fedsparse import ops
from fedsparse.blocked.caught import blocked_topk_pruned, blocked_values_gradient
from fedsparse.errors import ShapeError
from fedsparse.nn.conv2d import SparseConv2d
from fedsparse.nn.layer import Operand
from fedsparse.pattern import Pattern

__all__ = ["GAMMA", "NormalisedConv2d", "SparseNormalisedConv2d"]

GAMMA = 1.712859  # sqrt(2 / (1 - 1 / pi)): what a ReLU leaves of a unit variance is undone
_FLOOR = 1e-4  # of N v: constant filters become 0, not NaN


class NormalisedConv2d(nn.Conv2d):
    """`nn.Conv2d` whose filters are normalised before they are used; see the module for the formula.

    `sparsify` turns it into a `SparseNormalisedConv2d`, with what it prunes left out of w^.

    Attributes:
        gain: `(out,)` parameter, g; 1 at first.
        gamma: constant factor.
        mask: bool, of the weight's shape: what a sparse layer has kept, where this one was made from it; or None.

    Raises:
        ShapeError: a filter has a single weight, which has no variance.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        gamma: float = GAMMA,
        device: torch.device | str | None = None,
    ) -> None:
        moves = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *moves, bias, padding_mode, device)
        if self.weight[0].numel() < 2:
            raise ShapeError("a filter of a single weight has no variance to be normalised by; leave this layer as is")
        self.gain = nn.Parameter(torch.ones(out_channels, device=device))
        self.gamma = gamma
        self.register_buffer("mask", None)

    @classmethod
    def of(cls, conv: nn.Conv2d, *, gamma: float = GAMMA) -> "NormalisedConv2d":
        """Layer that takes over the parameters and options of `conv`, and has gains of 1."""
        options: Any = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.bias is not None)
        make: Any = cls  # options are as the other layer's constructor has checked them
        made: NormalisedConv2d = make(
            conv.in_channels, conv.out_channels, *options, conv.padding_mode, gamma=gamma, device="meta"
        )
        made.weight, made.bias = conv.weight, conv.bias
        made.gain = nn.Parameter(conv.weight.detach().new_ones(conv.out_channels))
        return made.train(conv.training)

    def normalised(self) -> Tensor:
        """w^, differentiable, in dense shape."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        variance, mean = torch.var_mean(weight.flatten(1), 1)
        scale = self.gamma * self.gain * (weight[0].numel() * variance).clamp(min=_FLOOR).rsqrt()
        result: Tensor = (weight - mean.view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1)
        return result if self.mask is None else result * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` or `(in, height, width)` -> the same with `out` channels."""
        y: Tensor = self._conv_forward(x, self.normalised(), self.bias)
        return y


class SparseNormalisedConv2d(SparseConv2d):
    """`NormalisedConv2d` whose weight is stored as kept values and a pattern; w^ is computed from these in O(nnz).

    The gradient of a pruned weight, by which weights are chosen to grow, is the normalised convolution's: dL/dw_p of
    a position p that is added to the mask with the value 0, chain rule through mean and variance included, where the
    loss is taken as linear around the present w^, so with w^_p = 0. A weight that is then grown at 0 is multiplied
    as -mu gamma g / sqrt(N v), like any 0 among the kept ones.

    Attributes:
        gain: `(out,)` parameter, g.
        gamma: constant factor.
    """

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None, like: NormalisedConv2d) -> None:
        super().__init__(pattern, values, bias, like)
        self.gain = nn.Parameter(like.gain.detach().clone())
        self.gamma = like.gamma

    def to_dense(self) -> NormalisedConv2d:
        """`NormalisedConv2d` that computes the same function; its `mask` says what is pruned, if anything is."""
        dense = NormalisedConv2d.of(super().to_dense(), gamma=self.gamma)
        dense.gain = nn.Parameter(self.gain.detach().clone())
        if self.nnz < self.pattern.size:
            dense.mask = self.mask
        return dense

    @property
    def _rows(self) -> tuple[Tensor, int]:
        """Where rows start among the values, and N."""
        return self.get_buffer("row_start"), math.prod(self._pattern.shape[1:])

    def effective_values(self) -> Tensor:
        """w^ at the kept positions, `(nnz,)`, differentiable in values and gain."""
        function: Any = _Normalise
        result: Tensor = function.apply(self.values, self.gamma * self.gain, *self._rows)
        return result

    # ---- gradients at pruned positions
    def top_pruned_gradient(self, grad: Tensor, x: Tensor, k: int, weight: Operand) -> tuple[Tensor, Tensor]:
        slope, offset, _ = self._pruned_line(grad, x, weight)
        # dL/dw_p = slope dL/dw^_p + offset, by row.
        tiling = self.granularity.tiling(self._pattern.shape)
        found = blocked_topk_pruned(grad, x, k, weight, tiling, (slope.float(), offset.float()))
        if found is not None:
            return found[0], found[1].to(self.values.dtype)
        # One more image makes the offset part of the product's gradient: all ones, with the offsets as its output's
        # gradient at one pixel. Padding is written out, as ones see none.
        index, shape, geometry, backend = weight
        (sh, sw, ph, pw), others = geometry[:4], geometry[4:]
        grad, x = self.ordinary(grad, x)
        grad = F.pad(grad, (0, 0, 0, 0, 0, 0, 0, 1)).mul_(slope.view(-1, 1, 1))
        grad[-1, :, 0, 0] = offset
        x = F.pad(x, (pw, pw, ph, ph, 0, 0, 0, 1))
        x[-1] = 1
        weight = (index, shape, (sh, sw, 0, 0, *others), backend)
        return super().top_pruned_gradient(grad, x, k, weight)

    def dense_gradient(self, grad: Tensor, x: Tensor, weight: Operand) -> Tensor:
        slope, offset, kept = self._pruned_line(grad, x, weight)
        gradient = super().dense_gradient(grad, x, weight)
        gradient = gradient * slope.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)
        gradient.view(-1)[self.pattern.flat] = kept
        return gradient

    def _pruned_line(self, grad: Tensor, x: Tensor, weight: Operand) -> tuple[Tensor, Tensor, Tensor]:
        """Slope and offset `(out,)` that take dL/dw^ of a pruned position to dL/dw, and dL/dw of the kept ones."""
        with torch.no_grad():
            (row_start, fan_in), scale, values = self._rows, self.gamma * self.gain, self.effective_values()
            kept = blocked_values_gradient(grad, x, values, weight)
            if kept is None:
                kept = ops.values_gradient(*self.ordinary(grad, x), values, *weight)
            mean, inverse, curve = _statistics(self.values, row_start, fan_in)
            found = _backward(kept, self.values, scale, row_start, fan_in, _Statistics(mean, inverse, curve))
            slope = scale * inverse * (1 - 1 / fan_in - curve * mean.square())
            offset = scale * inverse * (curve * mean * found.moment - found.sum / fan_in)
        dtype = self.values.dtype
        return slope.to(dtype), offset.to(dtype), found.values.to(dtype)


# ---- the normalisation of kept values
class _Statistics(NamedTuple):
    """Of each row, `(out,)`: mu, 1 / sqrt(max(N v, floor)), and c in d(inverse)/dw = -c inverse (w - mu)."""

    mean: Tensor
    inverse: Tensor
    curve: Tensor


class _Gradients(NamedTuple):
    """dL/dw `(nnz,)`; of each row the sums over kept positions of dL/dw^ and of dL/dw^ (w - mu)."""

    values: Tensor
    sum: Tensor
    moment: Tensor


def _row_sums(entries: Tensor, row_start: Tensor) -> Tensor:
    return torch.segment_reduce(entries, "sum", offsets=row_start, initial=0)


def _along(rows: Tensor, row_start: Tensor, entries: int) -> Tensor:
    """The number of each kept position's row, `(nnz,)`."""
    return torch.repeat_interleave(rows, row_start.diff(), output_size=entries)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _statistics(values: Tensor, row_start: Tensor, fan_in: int) -> _Statistics:
    values = _wide(values)
    mean = _row_sums(values, row_start) / fan_in
    spread = _row_sums((values - _along(mean, row_start, values.numel())).square(), row_start)
    spread = spread + (fan_in - row_start.diff()) * mean.square()  # of the zeros at pruned positions
    share = fan_in / (fan_in - 1)
    inverse = (share * spread).clamp(min=_FLOOR).rsqrt()
    curve = torch.where(share * spread > _FLOOR, share * inverse.square(), 0.0)
    return _Statistics(mean, inverse, curve)


def _backward(
    grad: Tensor, values: Tensor, scale: Tensor, row_start: Tensor, fan_in: int, of: _Statistics
) -> _Gradients:
    """scale inverse (G - sum(G) / N - c (w - mu) sum(G (w - mu))), with G = dL/dw^."""
    grad, values = _wide(grad), _wide(values)
    entries = values.numel()
    centred = values - _along(of.mean, row_start, entries)
    total, moment = _row_sums(grad, row_start), _row_sums(grad * centred, row_start)
    found = grad - _along(total / fan_in, row_start, entries) - _along(of.curve * moment, row_start, entries) * centred
    return _Gradients(found * _along(scale * of.inverse, row_start, entries), total, moment)


class _Normalise(Function):
    """scale (w - mu) inverse at kept positions: sums by row in both directions, so that bits repeat on any device."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, row_start: Tensor, fan_in: int) -> Tensor:
        of = _statistics(values, row_start, fan_in)
        ctx.save_for_backward(values, scale, row_start, *of)
        ctx.fan_in = fan_in
        entries = values.numel()
        centred = _wide(values) - _along(of.mean, row_start, entries)
        return (centred * _along(scale * of.inverse, row_start, entries)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, row_start, mean, inverse, curve = ctx.saved_tensors
        found = _backward(grad, values, scale, row_start, ctx.fan_in, _Statistics(mean, inverse, curve))
        return found.values.to(values.dtype), (inverse * found.moment).to(scale.dtype), None, None
