"""The meaning of every op in plain PyTorch, for any dtype and device. For checking, not for speed."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.backends.base import Backend, Case, Geometry, Gradients
from fedsparse.pattern import Pattern

__all__ = ["ReferenceBackend"]


class ReferenceBackend:
    """Writes every product as sums over kept positions: no dense weight anywhere.

    A linear layer is read as a 1x1 convolution of 1x1 pictures.
    """

    name = "reference"

    def refuse(self, case: Case) -> str | None:
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        x4, geometry = _as_pictures(x, case)
        y = x4.new_zeros(_output4(case))
        for view, row, channel, kept in _taps(_padded(x4, geometry), pattern, geometry, y.shape[2:]):
            y.index_add_(1, row, view[:, channel] * values[kept, None, None])
        if bias is not None:
            y += bias[:, None, None]
        return y.reshape(case.output)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        x4, geometry = _as_pictures(x, case)
        grad4 = grad.reshape(_output4(case))
        padded = _padded(x4, geometry)
        grad_padded, grad_values = torch.zeros_like(padded), torch.zeros_like(values)
        into = _taps(grad_padded, pattern, geometry, grad4.shape[2:])
        for (view, row, channel, kept), (grad_view, *_) in zip(
            _taps(padded, pattern, geometry, grad4.shape[2:]), into, strict=True
        ):
            grad_view.index_add_(1, channel, grad4[:, row] * values[kept, None, None])
            grad_values[kept] = (grad4[:, row] * view[:, channel]).sum((0, 2, 3))
        (ph, pw), (high, wide) = geometry.padding, x4.shape[2:]
        grad_x = grad_padded[:, :, ph : ph + high, pw : pw + wide].reshape(case.input)
        return Gradients(grad_x if want[0] else None, grad_values if want[1] else None)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        everything = Pattern.from_mask(torch.ones(pattern.shape, dtype=torch.bool))
        zeros = grad.new_zeros(everything.nnz)
        dense = self.backward(grad, x, zeros, everything, (False, True), case).values
        assert dense is not None
        pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)
        order = torch.sort(dense[pruned].abs(), descending=True, stable=True).indices[:k]
        return pruned[order], dense[pruned[order]]


def _as_pictures(x: Tensor, case: Case) -> tuple[Tensor, Geometry]:
    return (x[:, :, None, None], Geometry()) if case.geometry is None else (x, case.geometry)


def _output4(case: Case) -> tuple[int, ...]:
    return (*case.output, 1, 1)[:4]


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    (ph, pw) = geometry.padding
    return F.pad(x, (pw, pw, ph, ph))


def _taps(
    padded: Tensor, pattern: Pattern, geometry: Geometry, out: torch.Size
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each kernel position: the input pixels it meets, and row, input channel and index of its kept values."""
    (_, inputs, kh, kw) = (*pattern.shape, 1, 1)[:4]
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    row, column = pattern.rows, pattern.column.to(torch.int64)
    channel = row // (pattern.shape[0] // geometry.groups) * inputs + column // (kh * kw)
    for tap in range(kh * kw):
        y, x = tap // kw * dh, tap % kw * dw
        view = padded[:, :, y : y + (out[0] - 1) * sh + 1 : sh, x : x + (out[1] - 1) * sw + 1 : sw]
        kept = (column % (kh * kw) == tap).nonzero().squeeze(1)
        yield view, row[kept], channel[kept], kept


_: Backend = ReferenceBackend()
