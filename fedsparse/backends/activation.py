"""Scaled activation pruning: what is left of a layer's input for its weight gradient, as bitmap and packed values.

The input x~ of the weight gradient holds the k = round(keep * n) elements of largest magnitude of x and zeros elsewhere
(Huang et al., FedMef, arXiv 2403.14737). An input's *tile* is one image, or one row of a linear layer's input: `tile`
keeps k of each, `global` k of the whole batch. Ties go to the lowest index of the ordinary, contiguous tensor; NaN
counts as largest. Exact zeros are never stored. Two implementations with the same meaning stand here: the C++ kernels
on blocked activations (csrc/cpu/activation.h), and plain PyTorch for any dtype and device. A third one, for tensors on
a CUDA device, stands in device_activation.py.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address
from fedsparse.backends import device_activation
from fedsparse.backends.blocked import isa_of
from fedsparse.backends.cpu import blocked_shape, from_blocked, lanes, to_blocked
from fedsparse.backends.device_activation import DevicePacked, DeviceShared, kernels_for
from fedsparse.backends.device_norms import Norm
from fedsparse.backends.term import Cuts, Packed, Term
from fedsparse.errors import ConfigError, ShapeError

__all__ = [
    "Kept",
    "PlainPacked",
    "Pruning",
    "keep",
    "nonzero_bits",
    "pack",
    "plain_pack",
    "plain_unpack",
    "restore",
    "select",
    "unpack",
]

Rule = Literal["tile", "global"]
_RULES = ("tile", "global")
_DTYPES = (None, torch.float32, torch.bfloat16)
_CHUNK = 512  # elements
_LIMIT = 1 << 31
_WASTE = 1 / 16  # of the memory that packed values need, more than which must not lie idle


@dataclass(frozen=True)
class Pruning:
    """How much of an activation is saved, and how.

    Attributes:
        keep: kept share, in (0, 1].
        rule: `tile` or `global`.
        dtype: of the kept values: bfloat16, or None for that of the activations.

    Raises:
        ConfigError: another value.
    """

    keep: float
    rule: Rule = "tile"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.keep, int | float) and not isinstance(self.keep, bool)
        if not number or not 0 < self.keep <= 1:
            raise ConfigError(f"keep is the kept share of the activations, in (0, 1]; got {self.keep!r}")
        if self.rule not in _RULES:
            raise ConfigError(f"unknown rule {self.rule!r} to prune activations; expected one of {', '.join(_RULES)}")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"kept activations are stored as torch.float32 or torch.bfloat16; got {self.dtype!r}")
        if self.dtype == torch.float32:
            object.__setattr__(self, "dtype", None)

    def count(self, elements: int) -> int:
        """Elements kept of so many; halves go to the even number, as `round` does."""
        return round(self.keep * elements)


# ---- blocked activations
def select(x: Term, batch: int, pruning: Pruning) -> Cuts | None:
    """The cuts that prune what the term makes of its data, its own cuts aside; None where everything is kept."""
    if pruning.keep == 1:
        return None
    image = prod(x.data.shape[1:-1])
    if image >= _LIMIT:
        raise ShapeError(f"activations of {image} elements an image cannot be pruned; the limit is {_LIMIT - 1}")
    together = pruning.rule == "global"
    k = pruning.count(image * batch if together else image)
    key, last = torch.empty((2, x.data.shape[0] * x.data.shape[-1]), dtype=torch.int32)
    native, threads = _native.extension(), torch.get_num_threads()
    arguments = (_isa(x), _sizes(x, batch), x.held_view, k, together, address(key), address(last), threads)
    workspace = torch.empty(native.select_activations(*arguments, 0), dtype=torch.uint8)
    return Cuts(key, last, native.select_activations(*arguments, address(workspace)))


def pack(x: Term, batch: int, dtype: torch.dtype | None = None) -> Packed:
    """What is left of a term, its values stored as `dtype`, float32 unless given.

    Raises:
        ShapeError: 2^31 values or more are left.
    """
    dtype, spare = dtype or torch.float32, x.data.shape[-1]
    room = _expected(x, batch)
    packed, count = _mark(x, batch, torch.empty(room + spare, dtype=dtype), room)
    if count > room:
        packed = packed._replace(values=torch.empty(count + spare, dtype=dtype))
        _native.extension().pack_activations(
            _isa(x), _sizes(x, batch), x.held_view, packed.view, torch.get_num_threads()
        )
    values = packed.values[: count + spare]
    return packed._replace(values=values.clone() if room - count > _WASTE * count else values)


def nonzero_bits(x: Term, batch: int) -> Tensor:
    """One bit for each element, set where the term is not zero: a ReLU's gate, as `norm_backward` takes it."""
    return _mark(x, batch, torch.empty(0), 0)[0].bits


def unpack(packed: Packed, shape: tuple[int, ...]) -> Tensor:
    """Blocked float32 activations of `shape`, zeros where nothing was kept."""
    x = torch.empty(shape)
    _native.extension().unpack_activations(
        isa_of(shape[-1]), prod(shape[:-1]), packed.view, address(x), torch.get_num_threads()
    )
    return x


def _mark(x: Term, batch: int, values: Tensor, room: int) -> tuple[Packed, int]:
    """Bits, starts and number of what is left; with the values, too, where there is room for them."""
    chunks = -(-x.data.numel() // _CHUNK)
    bits = torch.empty(chunks * _CHUNK // 8, dtype=torch.uint8)
    packed = Packed(bits, torch.empty(chunks + 1, dtype=torch.int32), values)
    cuts = (0, 0) if x.cuts is None else (address(x.cuts.key), address(x.cuts.last))
    count: int = _native.extension().mark_activations(
        _isa(x), _sizes(x, batch), x.held_view, cuts, packed.view, room, torch.get_num_threads()
    )
    if count >= _LIMIT:
        raise ShapeError(f"{count} values of one activation cannot be packed; the limit is {_LIMIT - 1}")
    return packed, count


def _expected(x: Term, batch: int) -> int:
    """Values to make room for before they are counted, 0 where that might waste memory.

    Counting alone reads everything once more than a copy does. Cuts know their values; without cuts, a few channels of
    the first images tell whether zeros are rare.
    """
    if x.cuts is not None and x.cuts.kept is not None:
        return x.cuts.kept
    some = -(-x.data.shape[1] // 16)
    if x.cuts is not None or x.data.shape[1] < 2 * some:
        return 0
    scale, shift = (None if part is None else part[:some] for part in (x.scale, x.shift))
    sample = Term(x.data[:1, :some], scale, shift, x.relu)
    images, elements = min(batch, x.data.shape[-1]), prod(x.data.shape[1:-1])
    sampled = images * elements // x.data.shape[1] * some
    count = _mark(sample, images, torch.empty(0), 0)[1]
    return batch * elements if (1 + _WASTE) * count >= sampled else 0


def _isa(x: Term) -> str:
    return isa_of(x.data.shape[-1])


def _sizes(x: Term, batch: int) -> tuple[int, int, int, int]:
    return batch, x.data.shape[1], x.data.shape[2], x.data.shape[3]


# ---- ordinary tensors
class PlainPacked(NamedTuple):
    """What is left of an ordinary tensor.

    Attributes:
        bits: `(ceil(n / 8),)` uint8, one bit for each element of the contiguous tensor.
        values: `(count,)`.
    """

    bits: Tensor
    values: Tensor


def plain_pack(x: Tensor, pruning: Pruning) -> PlainPacked:
    """What is left of `(batch, ...)`, in plain PyTorch; `dtype=None` keeps the dtype of x."""
    tiles = x.reshape(1, x.numel()) if pruning.rule == "global" else x.flatten(1)
    kept = tiles != 0
    if pruning.keep < 1:
        order = tiles.abs().sort(dim=1, descending=True, stable=True).indices
        kept &= torch.zeros_like(kept).scatter_(1, order[:, : pruning.count(tiles.shape[1])], True)
    return PlainPacked(_bits(kept.reshape(-1)), tiles[kept].to(pruning.dtype or x.dtype))


def plain_unpack(packed: PlainPacked, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of `shape` and `dtype`, zeros where nothing was kept."""
    size = prod(shape)
    kept = (packed.bits[:, None] & _places(packed.bits)).view(-1)[:size] != 0
    x = torch.zeros(size, dtype=dtype, device=packed.bits.device)
    x[kept] = packed.values.to(dtype)
    return x.view(shape)


def _places(like: Tensor) -> Tensor:
    return (1 << torch.arange(8, device=like.device)).to(torch.uint8)


def _bits(flags: Tensor) -> Tensor:
    count = -(-flags.numel() // 8)
    whole = torch.nn.functional.pad(flags, (0, 8 * count - flags.numel())).view(count, 8).to(torch.uint8)
    return (whole * _places(flags)).sum(1, dtype=torch.uint8)


# ---- whichever fits a tensor
Kept = Packed | DevicePacked | DeviceShared | PlainPacked


def keep(x: Tensor, pruning: Pruning, norm: Norm | None = None) -> Kept:
    """What is left of an ordinary tensor `(batch, ...)`, by compiled kernels where they can.

    `norm` is the one on a device, if any, that x is the ReLU of.
    """
    x = x.detach()
    kernels, stored = kernels_for(x), pruning.dtype or x.dtype
    if kernels is not None:
        rows = 1 if pruning.rule == "global" else len(x)
        count = pruning.count(x.numel() // rows)
        if norm is not None:
            return device_activation.share(kernels, norm, rows, count, x)
        return device_activation.pack(kernels, x, rows, count, stored)
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or x.numel() == 0:
        return plain_pack(x, pruning)
    term, batch = Term(to_blocked(x)), x.shape[0]
    return pack(term._replace(cuts=select(term, batch, pruning)), batch, stored)


def restore(kept: Kept, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The pruned tensor of `shape` and `dtype`."""
    if isinstance(kept, PlainPacked):
        return plain_unpack(kept, shape, dtype)
    if isinstance(kept, DevicePacked):
        return device_activation.unpack(kept, shape, dtype)
    if isinstance(kept, DeviceShared):
        return device_activation.recompute(kept, dtype)
    return from_blocked(unpack(kept, blocked_shape(shape, lanes())), shape).to(dtype)
