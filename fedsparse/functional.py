"""Sparse products for those who hold their own parameters."""

import torch.nn.functional as F
from torch import Tensor

from fedsparse.errors import ShapeError
from fedsparse.ops import product
from fedsparse.pattern import Pattern

__all__ = ["conv2d", "linear", "place_kernel"]


def linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """`x W^T + bias` with the sparse weight W `(out, in)`.

    Args:
        x: `(..., in)`.
        values: `(nnz,)`.
        pattern: kept positions of W.
        bias: `(out,)`.
        backend: one of `fedsparse.backends.names()`.

    Returns:
        `(..., out)`.

    Raises:
        ShapeError: shapes, dtypes or devices do not fit.
        BackendError: the named backend cannot compute this.
    """
    if x.ndim == 0 or x.shape[-1] != pattern.shape[1]:
        raise ShapeError(
            f"input of shape {tuple(x.shape)} does not fit a weight of shape {pattern.shape}; "
            f"expected (..., {pattern.shape[1]})"
        )
    y = product(x.reshape(-1, x.shape[-1]), values, bias, pattern.index, pattern.shape, (), backend)
    return y.reshape(*x.shape[:-1], pattern.shape[0])


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """2-D convolution with the sparse weight `(out, in / groups, kh, kw)`.

    Args:
        x: `(batch, in, height, width)` or `(in, height, width)`, any memory format.
        values: `(nnz,)`.
        pattern: kept positions of the weight.
        bias: `(out,)`.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, with `padding` "same" or "valid" too.
        backend: one of `fedsparse.backends.names()`.

    Returns:
        `(batch, out, out_height, out_width)`, without the batch axis when `x` has none.

    Raises:
        ShapeError: shapes, dtypes, devices or groups do not fit.
        BackendError: the named backend cannot compute this.
    """
    batched = x if x.ndim == 4 else x.unsqueeze(0)
    batched, geometry = place_kernel(batched, pattern.shape, stride, padding, dilation, groups)
    y = product(batched, values, bias, pattern.index, pattern.shape, geometry, backend)
    return y if x.ndim == 4 else y.squeeze(0)


def place_kernel(
    x: Tensor,
    shape: tuple[int, ...],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
) -> tuple[Tensor, tuple[int, ...]]:
    """Input and numbers of a convolution as `ops.product` takes them, for a batched input.

    Named paddings become numbers; where `same` is lopsided, the input is padded right and below by the odd pixel.

    Returns:
        The input, and stride, padding, dilation (vertical and horizontal each) and groups.
    """
    if groups < 1 or shape[0] % groups:
        raise ShapeError(f"{shape[0]} output channels cannot be split into {groups} groups")
    strides, dilations = _pair("stride", stride, least=1), _pair("dilation", dilation, least=1)
    if isinstance(padding, str):
        x, paddings = _named_padding(x, padding, strides, dilations, shape[2:])
    else:
        paddings = _pair("padding", padding, least=0)
    return x, (*strides, *paddings, *dilations, groups)


def _pair(name: str, value: int | tuple[int, int], *, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ShapeError(f"{name} must be one or two numbers of at least {least}, got {value}")
    return pair[0], pair[1]


def _named_padding(
    x: Tensor, name: str, stride: tuple[int, int], dilation: tuple[int, int], kernel: tuple[int, ...]
) -> tuple[Tensor, tuple[int, int]]:
    """The input and symmetric padding that `valid` or `same` stand for; an odd remainder is padded right and below."""
    if name == "valid":
        return x, (0, 0)
    if name != "same":
        raise ShapeError(f"padding {name!r} is unknown; expected 'same', 'valid' or numbers of pixels")
    if stride != (1, 1):
        raise ShapeError(f"padding='same' needs stride 1, got {stride}")
    high, wide = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if high % 2 or wide % 2:
        x = F.pad(x, (0, wide % 2, 0, high % 2))
    return x, (high // 2, wide // 2)
