"""How the products read pictures: one offset for each pixel, one for each tap, and bits that say where both meet.

A picture is a tensor `(images, channels, height, width)` of any strides. A linear layer's input `(batch, features)` is
one picture of `features` channels and one row of `batch` pixels, which costs a view.

The address of tap k at pixel p is `pixel_base[p] + tap_offset[k]`, whatever stride, dilation and direction; whether it
lies inside the picture are two bit tests. A gather therefore spends six integer instructions a number, where the
coordinates themselves would cost over twice as many, and tensor cores wait for those.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LARGEST_KERNEL", "Window"]

LARGEST_KERNEL = 31  # one bit for each row or column of a kernel, and one that is never set


class Window(NamedTuple):
    """How a convolution's kernel moves; pairs are (vertical, horizontal), in pixels."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def constants(self, target: Tensor, *, transposed: bool) -> dict[str, int | bool]:
        """What the kernels are compiled for: the window, and which tests a product for `target` may leave out."""
        alone = self.kernel == (1, 1) and self.stride == (1, 1)
        return {
            "KH": self.kernel[0],
            "KW": self.kernel[1],
            "SH": self.stride[0],
            "SW": self.stride[1],
            "DH": self.dilation[0],
            "DW": self.dilation[1],
            "TRANSPOSED": transposed,
            "BOUNDS": self.padding != (0, 0) or (transposed and not alone),
            "FLAT": alone and self.padding == (0, 0) and target.shape[0] == 1 and target.shape[2] == 1,
        }


@triton.jit
def _reached(at, size, KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Bit t of entry p: whether tap t of pixel p lies inside [0, size), along one axis."""
    bits = tl.zeros_like(at)
    for tap in tl.static_range(KERNEL):
        if TRANSPOSED:
            distance = at - tap * DILATION
            inside = (distance >= 0) & (distance % STRIDE == 0) & (distance // STRIDE < size)
        else:
            distance = at + tap * DILATION
            inside = (distance >= 0) & (distance < size)
        bits |= inside.to(tl.int32) << tap
    return bits


@triton.jit
def split_pixels(pixel, high, wide, FLAT: tl.constexpr):
    """Image, row and column of numbered pixels."""
    if FLAT:
        image, row, column = tl.zeros_like(pixel), tl.zeros_like(pixel), pixel
    else:
        image = pixel // (high * wide)
        row = pixel // wide - image * high
        column = pixel % wide
    return image, row, column


@triton.jit
def read_pixels(
    pixel,
    pixels,
    target_high,
    target_wide,
    high,
    wide,
    pad_high,
    pad_wide,
    image_stride,
    row_stride,
    pixel_stride,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BOUNDS: tl.constexpr,
    FLAT: tl.constexpr,
):
    """For each pixel of the target: its base in the source, and which rows and columns of the kernel reach it.

    Pixels from number `pixels` on reach nothing.
    """
    live = pixel < pixels
    image, row, column = split_pixels(pixel, target_high, target_wide, FLAT)
    if TRANSPOSED:
        top, left = row + pad_high, column + pad_wide
        base = image * image_stride + top // SH * row_stride + left // SW * pixel_stride
    else:
        top, left = row * SH - pad_high, column * SW - pad_wide
        base = image * image_stride + top * row_stride + left * pixel_stride
    if BOUNDS:
        rows = tl.where(live, _reached(top, high, KH, SH, DH, TRANSPOSED), 0)
        columns = _reached(left, wide, KW, SW, DW, TRANSPOSED)
    else:
        # every tap of a live pixel
        rows = tl.where(live, (1 << KH) - 1, 0)
        columns = tl.full(pixel.shape, (1 << KW) - 1, tl.int32)
    return base, rows, columns


@triton.jit
def read_taps(
    entry,
    kept,
    channel_stride,
    row_stride,
    pixel_stride,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Offset of each tap, and its row and column in the kernel; a tap that is not kept gets a row that none reaches."""
    channel, place = entry // (KH * KW), entry % (KH * KW)
    down, right = place // KW, place % KW
    if TRANSPOSED:
        # where the tap meets a pixel, both leave the same remainder: the quotients subtract
        moved = -(down * DH // SH * row_stride + right * DW // SW * pixel_stride)
    else:
        moved = down * DH * row_stride + right * DW * pixel_stride
    return channel * channel_stride + moved, tl.where(kept, down, 31), right


@triton.jit
def gather(source, offset, down, right, base, rows, columns, BOUNDS: tl.constexpr):
    """The (taps, pixels) tile of a source; zero where they do not meet."""
    inside = (rows[None, :] >> down[:, None]) & 1
    if BOUNDS:
        inside = inside & (columns[None, :] >> right[:, None])
    return tl.load(source + (offset[:, None] + base[None, :]), mask=inside != 0, other=0.0)
