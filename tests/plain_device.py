"""What the kernels of a device do for pruned activations, in plain torch, for tensors in main memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fedsparse.backends import activation, device_activation, device_norms
from fedsparse.backends.activation import PlainPacked, Pruning, plain_pack, plain_unpack
from fedsparse.backends.device_activation import DevicePacked
from fedsparse.backends.device_norms import Norm, Running


class PlainNorms:
    """`fedsparse.backends.device_norms.Kernels`, which counts what it is asked for in `calls`.

    `counted`: for how many norms it has counted a batch.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.counted = 0

    def relu(self, x: Tensor, *, inplace: bool) -> tuple[Tensor, Tensor]:
        self.calls["relu"] += 1
        passes = (x > 0) | x.isnan()
        flat = device_norms.lies(x).in_memory(passes).reshape(-1)
        words = torch.nn.functional.pad(flat, (0, -x.numel() % 32)).view(-1, 32)
        bits = (words.long() << torch.arange(32, device=x.device)).sum(1)
        y = torch.where(passes, x, torch.zeros_like(x))
        return x.copy_(y) if inplace else y, torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int()

    def gate(self, x: Tensor, bits: Tensor) -> Tensor:
        passes = torch.empty_like(x)
        device_norms.lies(x).in_memory(passes).view(-1).copy_(_flags(bits, 32)[: x.numel()])
        return torch.where(passes != 0, x, torch.zeros_like(x))

    def statistics(self, x: Tensor, running: Running, momentum: float, eps: float) -> tuple[Tensor, Tensor]:
        self.calls["statistics"] += 1
        axes = [0, *range(2, x.dim())]
        mean, variance = x.double().mean(axes), x.double().var(axes, unbiased=False)
        count = x.numel() / x.shape[1]
        for kept, new in zip(running[:2], (mean, variance * count / (count - 1)), strict=True):
            if kept is not None:
                kept.data.copy_((1 - momentum) * kept.double() + momentum * new)  # as kernels do: past torch's count
        if running.batches is not None:
            self.counted += 1
            running.batches.data.add_(1)
        return mean.float(), (variance + eps).rsqrt().float()

    def norm(self, of: Norm, dtype: torch.dtype, rounded: Tensor | None, *, relu: bool) -> Tensor:
        self.calls["norm and relu" if relu else "norm"] += 1
        normal, y = self._of(of, dtype)
        if rounded is not None:
            rounded.copy_(normal)
        return (torch.where(y <= 0, torch.zeros_like(y), y) if relu else y).to(dtype)

    def norm_backward(self, grad: Tensor, of: Norm, *, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        normal, y = self._of(of, grad.dtype)
        slope = grad.double()
        if relu:
            slope = torch.where(y <= 0, torch.zeros_like(slope), slope)
        axes, count = [0, *range(2, grad.dim())], grad.numel() / grad.shape[1]
        bias, weight = slope.sum(axes), (slope * normal).sum(axes)
        scale = of.rstd.double() * (1.0 if of.weight is None else of.weight.double())
        x = _by_channel(scale, grad) * (slope - (_by_channel(bias, grad) + normal * _by_channel(weight, grad)) / count)
        return x.to(grad.dtype), weight.float(), bias.float()

    def norm_sum(self, of: Norm, rounded: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["norm, sum and relu"] += 1
        normal, y = self._of(of, other.dtype)
        if rounded is not None:
            rounded.copy_(normal)
        y = (y + other.double()).to(other.dtype)
        return torch.where(y <= 0, torch.zeros_like(y), y), ~(y <= 0)  # as many bits, in bytes of their own

    def norm_sum_backward(self, grad: Tensor, of: Norm, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gated = torch.where(bits, grad, torch.zeros_like(grad))
        return *self.norm_backward(gated, of, relu=False), gated

    def _of(self, of: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The normalised input, and the norm."""
        normal = of.held.double()
        if of.held.dtype == dtype:
            normal = (normal - _by_channel(of.mean, normal)) * _by_channel(of.rstd, normal)
        y = normal if of.weight is None else normal * _by_channel(of.weight, normal)
        return normal, y if of.bias is None else y + _by_channel(of.bias, normal)


def _by_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.double().view(-1, *[1] * (like.dim() - 2))


class PlainPacks:
    """`fedsparse.backends.device_activation.Kernels`."""

    def mark(self, x: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
        size, groups = x.numel() // rows, -(-x.numel() // 512)
        packed = plain_pack(x.view(rows, size), Pruning(k / size))
        bits = torch.nn.functional.pad(packed.bits, (0, 64 * groups - len(packed.bits)))
        counts = torch.nn.functional.pad(_flags(bits, 8).view(groups, 512).sum(1).cumsum(0), (1, 0))
        return bits.view(torch.int32), counts.int()

    def pack(self, x: Tensor, bits: Tensor, starts: Tensor, values: Tensor) -> None:
        values[: int(starts[-1])] = x.view(-1)[_flags(bits, 32)[: x.numel()] != 0].to(values.dtype)

    def unpack(self, packed: DevicePacked, x: Tensor) -> None:
        plain = PlainPacked(packed.bits.view(torch.uint8), packed.values[: int(packed.starts[-1])])
        x.copy_(plain_unpack(plain, tuple(x.shape), x.dtype))


def _flags(bits: Tensor, width: int) -> Tensor:
    return ((bits[:, None] >> torch.arange(width, device=bits.device)) & 1).view(-1)


@contextmanager
def plain_norms() -> Iterator[PlainNorms]:
    """Inside it, batch norms and ReLUs take tensors in main memory for ones on a device."""
    norms = PlainNorms()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_norms, "TRITON", norms)
        patch.setattr(device_norms, "available", lambda _: True)
        yield norms


@contextmanager
def plain_device() -> Iterator[PlainNorms]:
    """Inside it, everybody does."""
    packs = PlainPacks()
    with plain_norms() as norms, pytest.MonkeyPatch.context() as patch:
        for module in (activation, device_activation):
            patch.setattr(module, "kernels_for", lambda _: packs)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        yield norms
