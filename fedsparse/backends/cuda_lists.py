"""What the CUDA kernels read of a pattern: strips for tensor cores where its rows are alike, lists of taps elsewhere.

Both are made on the device. The host reads two numbers of a pattern: how many neighbouring rows, and inputs, are alike.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, check, launch, row_list
from fedsparse.backends.base import Case
from fedsparse.pattern import Pattern

__all__ = ["Alike", "Strips", "Taps", "alike", "build", "listed", "sizes_of"]

_CHUNK = 16  # lines
_WIDEST = 32  # channels of a strip
_LARGEST_KERNEL = 64  # pixels either way that the device can list

Sizes = tuple[int, ...]  # the 14 numbers of a convolution, in the order of ConvShape (csrc/include/fedsparse/shapes.h)


class Taps(NamedTuple):
    """A list of taps on the device.

    Attributes:
        start: int32, first tap of each row and slab.
        offset: `(nnz,)` uint16, distance of each tap inside its slab.
        value: `(nnz,)` int32, which value each tap has.
    """

    start: Tensor
    offset: Tensor
    value: Tensor


class Strips(NamedTuple):
    """A list of lines that strips of channels keep, on the device.

    Attributes:
        width: channels of a strip, 8, 16 or 32.
        room: chunks of 16 lines that fit: enough for every pattern of this structure with as many weights.
        start: int32, first chunk of each strip and slab, then the number of chunks.
        offset: `(room * 16,)` uint16, distance of each line inside its slab.
        value: `(room * 16 * width,)` int32, which value each packed number has, or -1.
    """

    width: int
    room: int
    start: Tensor
    offset: Tensor
    value: Tensor


class Alike(NamedTuple):
    """Which strips a pattern has.

    Attributes:
        rows: how many neighbouring rows keep the same columns, 8, 16 or 32; less: no 8 of them.
        inputs: of how many neighbouring inputs all or none are kept, in each row and at each kernel position.
    """

    rows: int
    inputs: int


def build(pattern: Pattern, case: Case, backward: bool, device: torch.device) -> Taps | Strips:
    """Strips where the kept positions have a structure, whatever the pattern's granularity is called; else taps.

    Devices that cannot give a block the memory that strips take get taps, as do kernels too large to be listed there.
    """
    native, here = _native.extension(), pattern.to(device)
    if not _native.on_device(here.column) or max(case.shape[2:], default=1) > _LARGEST_KERNEL:
        return _host_taps(pattern.to("cpu"), case, backward, device)
    strips = native.cuda_shared_limit() >= native.block_shared_bytes()
    return listed(here, case, backward, alike(here) if strips else Alike(0, 0))


def alike(pattern: Pattern) -> Alike:
    """Which strips a pattern has that lies on a device; the host waits for the answer."""
    widest = torch.full((2,), _WIDEST, dtype=torch.int32, device=pattern.column.device)
    sizes = pattern.shape[0], pattern.shape[1], math.prod(pattern.shape[2:])
    launch("cuda_block_strips", widest, *sizes, row_list(pattern.row_start, pattern.column), address(widest))
    return Alike(*widest.tolist())


def listed(pattern: Pattern, case: Case, backward: bool, widest: Alike) -> Taps | Strips:
    """The lists of a pattern that lies on a device and has these strips; nothing is read from there."""
    width = _native.extension().block_width(sizes_of(case), backward, STORED[case.dtype], *widest)
    return _strips(pattern, case, backward, width, widest) if width else _device_taps(pattern, case, backward)


def _empty_taps(nnz: int, case: Case, backward: bool, device: torch.device) -> Taps:
    size = _native.extension().csr16_start_size(sizes_of(case), backward, STORED[case.dtype])
    kinds = ((size, torch.int32), (nnz, torch.uint16), (nnz, torch.int32))
    return Taps(*(torch.empty(length, dtype=dtype, device=device) for length, dtype in kinds))


def _device_taps(here: Pattern, case: Case, backward: bool) -> Taps:
    taps = _empty_taps(here.nnz, case, backward, here.column.device)
    workspace = taps.value.new_empty(_native.extension().cuda_csr16_list_size(here.nnz), dtype=torch.uint8)
    launch(
        "cuda_csr16_list", taps.value, sizes_of(case), backward, STORED[case.dtype], here.nnz,
        row_list(here.row_start, here.column), *map(address, taps), address(workspace),
    )  # fmt: skip
    return taps


def _host_taps(host: Pattern, case: Case, backward: bool, device: torch.device) -> Taps:
    taps = _empty_taps(host.nnz, case, backward, torch.device("cpu"))
    problem = sizes_of(case), backward, STORED[case.dtype]
    check("csr16_list", _native.extension().csr16_list(*problem, host.view, *map(address, taps)))
    return Taps(*(index.to(device) for index in taps))


def _strips(here: Pattern, case: Case, backward: bool, width: int, widest: Alike) -> Strips:
    native, problem = _native.extension(), (sizes_of(case), backward, STORED[case.dtype], width)
    room = native.block_room(*problem, here.nnz, *widest)
    start = here.row_start.new_empty(native.block_start_size(*problem))
    offset, value = start.new_empty(room * _CHUNK, dtype=torch.uint16), start.new_empty(room * _CHUNK * width)
    lists = map(address, (start, offset, value))
    launch("cuda_block_list", start, *problem, row_list(here.row_start, here.column), *lists)
    return Strips(width, room, start, offset, value)


def sizes_of(case: Case) -> Sizes:
    """The numbers of a case, a linear layer being a 1x1 convolution of one-pixel pictures."""
    if case.geometry is None:
        return case.input[0], case.shape[1], 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1
    g = case.geometry
    return *case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups
