"""Scaled activation pruning by rows: the k largest magnitudes of each image or sample, as bitmap and packed values.

Huang et al., FedMef, arXiv 2403.14737. Ties go to the lowest index of the row, NaN counts as largest, exact zeros take
no more than their bit. One program finds the cut of a row: of a short one, which its registers hold, bit by bit after
reading it once; of a longer one by counting digits of eight bits, which reads it five times. One row, a whole batch
that is pruned together, is cut by torch's own selection. Marking and moving go over the tensor in groups of 512
elements, whatever the rows. Bits and starts are those of the CUDA kernels (csrc/cuda/cuda_api.h).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import FUSION

__all__ = ["mark", "pack", "unpack"]

GROUP = 512  # elements to an entry of `starts`, and of a program
CHUNK = 1024  # elements that a program cuts at a time
SHORT = 8192  # elements of the longest row that registers hold, 32 a thread
_LARGEST = 0x7F800001  # NaN, above infinity
_ABOVE_ALL = 0x7FFFFFFF


@triton.jit
def _key(number):
    # Magnitudes order as their bits do; all NaN are one.
    return tl.minimum(number.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)


@triton.jit
def _short_cut_kernel(x, thresholds, lasts, size, k, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    place = tl.arange(0, WIDTH)
    inside = place < size
    # Places behind the end are below every element.
    key = tl.where(inside, _key(tl.load(x + row.to(tl.int64) * size + place, mask=inside, other=0.0)), -1)
    # The largest threshold that k keys reach, from its highest bit down.
    threshold = k * 0
    for bit in range(31):
        candidate = threshold | (1 << (30 - bit))
        enough = tl.sum((key >= candidate).to(tl.int32), axis=0) >= k
        threshold = tl.where(enough, candidate, threshold)
    tie = key == threshold
    room = k - tl.sum((key > threshold).to(tl.int32), axis=0)
    fits = tie & (tl.cumsum(tie.to(tl.int32), axis=0) <= room)
    tl.store(thresholds + row, threshold)
    tl.store(lasts + row, tl.max(tl.where(fits, place, -1), axis=0))


@triton.jit
def _cut_kernel(x, thresholds, lasts, size, k, CHUNK: tl.constexpr):
    row = tl.program_id(0)
    own = x + row.to(tl.int64) * size
    digits = tl.arange(0, 256)
    wanted, known = k, k * 0
    for digit in tl.static_range(4):
        counts = tl.zeros((256,), dtype=tl.int32)
        for first in range(0, size, CHUNK):
            place = first + tl.arange(0, CHUNK)
            key = _key(tl.load(own + place, mask=place < size, other=0.0))
            shares = (place < size) & ((key >> (24 - 8 * digit) >> 8) == known)
            counts += tl.histogram((key >> (24 - 8 * digit)) & 255, 256, mask=shares)
        # Keys from each digit on: the highest digit that `wanted` of them reach.
        reached = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts
        found = tl.sum((reached >= wanted).to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(digits > found, counts, 0), axis=0)
        known = known * 256 + found
    seen, last = k * 0, k * 0 - 1
    for first in range(0, size, CHUNK):
        place = first + tl.arange(0, CHUNK)
        key = _key(tl.load(own + place, mask=place < size, other=0.0))
        tie = (place < size) & (key == known)
        rank = seen + tl.cumsum(tie.to(tl.int32), axis=0)
        last = tl.maximum(last, tl.max(tl.where(tie & (rank <= wanted), place, -1), axis=0))
        seen += tl.sum(tie.to(tl.int32), axis=0)
    tl.store(thresholds + row, known)
    tl.store(lasts + row, last)


@triton.jit
def _mark_kernel(x, thresholds, lasts, bits, counts, n, size, EVERYTHING: tl.constexpr, GROUP: tl.constexpr):
    group = tl.program_id(0)
    at = group.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    inside = at < n
    number = tl.load(x + at, mask=inside, other=0.0)
    kept = inside & (number != 0.0)
    if not EVERYTHING:
        index = at.to(tl.int32)  # fewer than 2^31 are inside
        row = index // size
        threshold = tl.load(thresholds + row, mask=inside, other=0)
        last = tl.load(lasts + row, mask=inside, other=0)
        key = _key(number)
        kept = kept & ((key > threshold) | ((key == threshold) & (index - row * size <= last)))
    flags = kept.to(tl.int32)
    tl.store(counts + group, tl.sum(flags, axis=0))
    # Each bit is set once, so that adding them is or-ing them.
    words = tl.sum(tl.reshape(flags, (GROUP // 32, 32)) << tl.arange(0, 32)[None, :], axis=1)
    tl.store(bits + group.to(tl.int64) * (GROUP // 32) + tl.arange(0, GROUP // 32), words)


@triton.jit
def _marked(bits, starts, group, GROUP: tl.constexpr):
    """Whether each element of a group is marked, and its place among the values."""
    place = tl.arange(0, GROUP)
    word = tl.load(bits + group.to(tl.int64) * (GROUP // 32) + place // 32)
    kept = (word >> (place % 32)) & 1
    return kept != 0, tl.load(starts + group) + tl.cumsum(kept, axis=0) - 1


@triton.jit
def _pack_kernel(x, bits, starts, values, GROUP: tl.constexpr):
    group = tl.program_id(0)
    kept, target = _marked(bits, starts, group, GROUP)
    number = tl.load(x + group.to(tl.int64) * GROUP + tl.arange(0, GROUP), mask=kept, other=0.0)
    tl.store(values + target, number.to(values.dtype.element_ty), mask=kept)


@triton.jit
def _unpack_kernel(bits, starts, values, x, n, GROUP: tl.constexpr):
    group = tl.program_id(0)
    kept, source = _marked(bits, starts, group, GROUP)
    number = tl.load(values + source, mask=kept, other=0.0)
    at = group.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    tl.store(x + at, number.to(x.dtype.element_ty), mask=at < n)


def mark(x: Tensor, rows: int, k: int, bits: Tensor, starts: Tensor) -> None:
    """Marks the k elements of each row with the largest magnitudes, zeros left out.

    Args:
        x: contiguous, of 16 or 32 bits, not empty, fewer than 2^31 elements.
        rows: into which x is cut evenly.
        bits: `(16 * groups,)` int32, written.
        starts: `(groups + 1,)` int32, written: marked elements before each group.
    """
    n, groups = x.numel(), starts.numel() - 1
    everything = k == n // rows
    thresholds, lasts = (starts, starts) if everything else _cuts(x, rows, k)
    counts = torch.empty(groups, dtype=torch.int32, device=x.device)
    with torch.cuda.device(x.get_device()):  # -1, no device, for the interpreter
        _mark_kernel[(groups,)](
            x, thresholds, lasts, bits, counts, n, n // rows, EVERYTHING=everything, GROUP=GROUP, num_warps=2,
            enable_fp_fusion=FUSION,
        )  # fmt: skip
    starts[:1] = 0
    torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])


def pack(x: Tensor, bits: Tensor, starts: Tensor, values: Tensor) -> None:
    """Writes the marked elements of x, in order, to the first places of `values`, of 16 or 32 bits."""
    with torch.cuda.device(x.get_device()):
        _pack_kernel[(starts.numel() - 1,)](
            x, bits, starts, values, GROUP=GROUP, num_warps=2, enable_fp_fusion=FUSION
        )  # fmt: skip


def unpack(bits: Tensor, starts: Tensor, values: Tensor, x: Tensor) -> None:
    """Writes all of x: `values` where marked, zeros elsewhere."""
    with torch.cuda.device(x.get_device()):
        _unpack_kernel[(starts.numel() - 1,)](
            bits, starts, values, x, x.numel(), GROUP=GROUP, num_warps=2, enable_fp_fusion=FUSION
        )  # fmt: skip


def _cuts(x: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """Of each row the smallest key that stays, and the last element with this key that does: `(rows,)` int32 each."""
    if k == 0:
        none = torch.full((rows,), _ABOVE_ALL, dtype=torch.int32, device=x.device)
        return none, none
    if rows == 1:
        return _whole_cut(x, k)
    thresholds, lasts = torch.empty((2, rows), dtype=torch.int32, device=x.device)
    size = x.numel() // rows
    with torch.cuda.device(x.get_device()):
        if size <= SHORT:
            width = max(triton.next_power_of_2(size), 32)
            warps = max(width // 1024, 1)
            _short_cut_kernel[(rows,)](
                x, thresholds, lasts, size, k, WIDTH=width, num_warps=warps, enable_fp_fusion=FUSION
            )  # fmt: skip
        else:
            _cut_kernel[(rows,)](x, thresholds, lasts, size, k, CHUNK=CHUNK, enable_fp_fusion=FUSION)
    return thresholds, lasts


def _whole_cut(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The cut of the only row; nothing here waits for the device."""
    keys = (x.reshape(-1).float().view(torch.int32) & _ABOVE_ALL).clamp(max=_LARGEST)
    threshold = keys.topk(k, sorted=False).values.amin()
    room = k - (keys > threshold).sum()
    last = torch.searchsorted((keys == threshold).cumsum(0), room)
    return threshold.view(1), last.to(torch.int32).view(1)
