"""Resizing and measuring pictures, without ever holding all of them as floats."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsparse.errors import ConfigError

__all__ = ["moments", "resize"]

_AT_ONCE = 2048  # pictures resized together: bounds the floats held


def resize(x: Tensor, side: int | None) -> Tensor:
    """Pictures `(n, channels, h, w)` at `(n, channels, side, side)`, bilinear and antialiased, in their own dtype.

    Raises:
        ConfigError: x are no pictures, or side is below 1.
    """
    if side is None:
        return x
    if x.ndim != 4 or side < 1:
        raise ConfigError(
            f"image_size={side} needs pictures (n, channels, h, w) and a side of at least 1, got {tuple(x.shape)}"
        )
    if x.shape[2:] == (side, side):
        return x
    resized = x.new_empty(*x.shape[:2], side, side)
    for part, target in zip(x.split(_AT_ONCE), resized.split(_AT_ONCE), strict=True):
        floats = F.interpolate(part.to(torch.float32), (side, side), mode="bilinear", antialias=True)
        target.copy_(floats.round().clamp(0, 255) if x.dtype == torch.uint8 else floats)
    return resized


def moments(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation `(channels,)` float32 of uint8 pictures as shares of 255; None for other data.

    Exact: taken from the histogram of each channel. A constant channel gets deviation 1.
    """
    if x.dtype != torch.uint8 or x.ndim != 4:
        return None, None
    counts = torch.stack([torch.bincount(x[:, c].reshape(-1), minlength=256) for c in range(x.shape[1])]).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = (shares * levels).sum(1, keepdim=True)
    std = (shares * (levels - mean) ** 2).sum(1).sqrt()
    return mean[:, 0].float(), torch.where((counts > 0).sum(1) > 1, std, 1.0).float()
