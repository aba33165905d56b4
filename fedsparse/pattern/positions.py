"""Flat positions, chosen and put in order by the compiled loops: in main memory, unless said otherwise."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address, launch

__all__ = ["Order", "ascending", "counted", "first_in_order", "selectable", "smallest_of_each"]

# What comes first: the largest score, the largest |score| or the smallest |score|.
Order = Literal["largest", "largest_magnitude", "smallest_magnitude"]

_LIMIT = 1 << 31  # positions of the compiled selection have 32 bits


def selectable(scores: Tensor) -> bool:
    """Whether `first_in_order` takes these scores: float32 in main memory, fewer than 2^31."""
    return scores.dtype == torch.float32 and scores.device.type == "cpu" and scores.numel() < _LIMIT


def counted(mask: Tensor) -> int:
    """Number of True positions of a contiguous bool mask `(n,)`, n < 2^31."""
    starts = torch.empty(2, dtype=torch.int32)
    kept: int = _native.extension().count_kept(address(mask), 1, mask.numel(), address(starts), 1)
    return kept


def first_in_order(scores: Tensor, k: int, candidates: int, among: Tensor | None, order: Order) -> tuple[Tensor, int]:
    """Ascending positions `(k,)` int64 of the k scores that come first, ties to the lowest, and the number of NaN.

    With a NaN among the candidates the positions are void.

    Args:
        scores: `(n,)`, contiguous and `selectable`.
        k: at most `candidates`.
        candidates: number of True positions of `among`; n without it.
        among: contiguous bool mask `(n,)` of what may be taken, or None.
        order: what comes first.
    """
    native, positions = _native.extension(), torch.empty(k, dtype=torch.int64)
    sizes = (scores.numel(), candidates, k, getattr(native.SelectOrder, order), torch.get_num_threads())
    arguments = (address(scores), address(among), *sizes, address(positions))
    workspace = torch.empty(native.select_top(*arguments, 0), dtype=torch.uint8)
    return positions, native.select_top(*arguments, address(workspace))


def ascending(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Int64 positions `(n,)` inside [0, `size`) in ascending order, and where each stood before, int64 as well.

    On any device.
    """
    if positions.device.type != "cpu":
        ordered = positions.sort()
        return ordered.values, ordered.indices
    native = _native.extension()
    positions = positions.clone(memory_format=torch.contiguous_format)
    before = torch.empty_like(positions)
    arguments = (address(positions), address(before), positions.numel(), size)
    workspace = torch.empty(native.sort_positions(*arguments, 0), dtype=torch.uint8)
    native.sort_positions(*arguments, address(workspace))
    return positions, before


def smallest_of_each(layers: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor] | None:
    """Ascending numbers, int64, of the `counts[i]` entries of smallest magnitude of each layer, all in one launch.

    Ties go to the lowest number, NaN comes last. None where no kernel can: of layers that are not all float32 on a CUDA
    device, or that have 2^31 entries in all.
    """
    if not all(_native.on_device(layer) and layer.dtype == torch.float32 for layer in layers):
        return None
    flat = torch.cat([layer.reshape(-1) for layer in layers])
    size = _native.extension().cuda_smallest_size(len(layers), flat.numel())
    if size == 0:
        return None
    starts = flat.new_tensor([*accumulate((layer.numel() for layer in layers), initial=0)], dtype=torch.int64)
    firsts = flat.new_tensor([*accumulate(counts, initial=0)], dtype=torch.int64)
    numbers, workspace = starts.new_empty(sum(counts)), flat.new_empty(size, dtype=torch.uint8)
    launch(
        "cuda_smallest", flat, address(flat), len(layers), flat.numel(), address(starts), address(firsts),
        address(numbers), address(workspace),
    )  # fmt: skip
    return list(numbers.split(list(counts)))
