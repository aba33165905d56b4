"""What the CUDA kernels read of a pattern: strips for tensor cores where its rows are alike, lists of taps elsewhere.

Taps are made on the device, without a look at the pattern from the host but whether neighbouring rows are alike. Strips
are made on the host and copied.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import STORED, address, check, launch, row_list
from fedsparse.backends.base import Case
from fedsparse.pattern import Pattern

__all__ = ["Strips", "Taps", "build", "sizes_of"]

_CHUNK = 16  # lines
_NARROWEST = 8  # channels of a strip
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
        chunks: of 16 lines.
        start: int32, first chunk of each strip and slab.
        offset: `(chunks * 16,)` uint16, distance of each line inside its slab.
        value: `(chunks * 16 * width,)` int32, which value each packed number has, or -1.
    """

    width: int
    chunks: int
    start: Tensor
    offset: Tensor
    value: Tensor


def build(pattern: Pattern, case: Case, backward: bool, device: torch.device) -> Taps | Strips:
    """Strips where the kept positions have a structure, whatever the pattern's granularity is called; else taps.

    Devices that cannot give a block the memory that strips take get taps.
    """
    native, here = _native.extension(), pattern.to(device)
    if native.cuda_shared_limit() >= native.block_shared_bytes() and _rows_alike(here):
        host = pattern.to("cpu")
        width = native.block_width(sizes_of(case), backward, STORED[case.dtype], host.view)
        if width:
            return _strips(host, case, backward, width, device)
    if _native.on_device(here.column) and max(case.shape[2:], default=1) <= _LARGEST_KERNEL:
        return _device_taps(here, case, backward)
    return _host_taps(pattern.to("cpu"), case, backward, device)


def _rows_alike(pattern: Pattern) -> bool:
    """Whether every 8 neighbouring rows keep the same columns, as those of the narrowest strips do."""
    start, column = pattern.row_start.to(torch.int64), pattern.column.to(torch.int32)
    rows = torch.arange(pattern.shape[0], device=start.device)
    first, counts = rows // _NARROWEST * _NARROWEST, start.diff()
    if not bool((counts == counts[first]).all()):
        return False
    row = pattern.rows
    twin = start[first][row] + torch.arange(pattern.nnz, device=row.device) - start[row]
    return bool((column == column[twin]).all())


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


def _strips(host: Pattern, case: Case, backward: bool, width: int, device: torch.device) -> Strips:
    native, problem = _native.extension(), (sizes_of(case), backward, STORED[case.dtype], width)
    start = torch.empty(native.block_start_size(*problem), dtype=torch.int32)
    check("block_start", native.block_start(*problem, host.view, address(start)))
    chunks = int(start[-1])
    offset = torch.empty(chunks * _CHUNK, dtype=torch.uint16)
    value = torch.empty(chunks * _CHUNK * width, dtype=torch.int32)
    status = native.block_list(*problem, host.view, address(start), address(offset), address(value))
    check("block_list", status)
    return Strips(width, chunks, *(index.to(device) for index in (start, offset, value)))


def sizes_of(case: Case) -> Sizes:
    """The numbers of a case, a linear layer being a 1x1 convolution of one-pixel pictures."""
    if case.geometry is None:
        return case.input[0], case.shape[1], 1, 1, case.shape[0], 1, 1, 1, 1, 0, 0, 1, 1, 1
    g = case.geometry
    return *case.input, case.shape[0], *case.shape[2:], *g.stride, *g.padding, *g.dilation, g.groups
