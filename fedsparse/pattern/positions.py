"""Flat positions, chosen and put in order by the compiled loops: in main memory, unless said otherwise."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import address, launch

__all__ = [
    "Order",
    "ascending",
    "ascending_of_each",
    "by_kernel",
    "counted",
    "first_in_order",
    "highest_of_each",
    "mirrored",
    "selectable",
    "shifts",
    "smallest_of_each",
    "starts_of",
    "taken_of_each",
    "together",
]

# What comes first: the largest score, the largest |score| or the smallest |score|.
Order = Literal["largest", "largest_magnitude", "smallest_magnitude"]

_LIMIT = 1 << 31  # positions of the compiled selection have 32 bits
_INFINITY, _FRACTION = 0x7F800000, 0x007FFFFF  # bits of float32


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


# ---- of several weights at once
def together(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors lie on one device that the CUDA kernels serve."""
    return all(_native.on_device(tensor) for tensor in tensors) and len({tensor.device for tensor in tensors}) == 1


def by_kernel(layers: Sequence[Tensor]) -> bool:
    """Whether `smallest_of_each` takes these layers: float32 on one such device, fewer than 2^31 entries in all."""
    fitting = sum(layer.numel() for layer in layers) < _LIMIT
    return fitting and together(layers) and all(layer.dtype == torch.float32 for layer in layers)


def smallest_of_each(layers: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Ascending numbers, int64, of the `counts[i]` entries of smallest magnitude of each layer, all in one launch.

    Ties go to the lowest number, NaN comes last.

    Args:
        layers: one or more, as `by_kernel` takes them.
        counts: as many.

    Returns:
        The numbers, and whether an entry is NaN, a bool on the device.
    """
    flat = torch.cat([layer.reshape(-1) for layer in layers])
    size = _native.extension().cuda_smallest_size(len(layers), flat.numel())
    starts, firsts = flat.new_tensor(
        [starts_of([layer.numel() for layer in layers]), starts_of(counts)], dtype=torch.int64
    )  # fmt: skip
    numbers, workspace = starts.new_empty(sum(counts)), flat.new_empty(size, dtype=torch.uint8)
    launch(
        "cuda_smallest", flat, address(flat), len(layers), flat.numel(), address(starts), address(firsts),
        address(numbers), address(workspace),
    )  # fmt: skip
    return list(numbers.split(list(counts))), flat.isnan().any()


def mirrored(layers: Sequence[Tensor]) -> list[Tensor]:
    """Numbers whose magnitudes rise where those of float32 layers, on one device, fall; NaN for NaN."""
    flat = torch.cat([layer.reshape(-1) for layer in layers])
    magnitudes = flat.view(torch.int32).bitwise_and(_INFINITY | _FRACTION)
    return list((_INFINITY - magnitudes).view(torch.float32).split([layer.numel() for layer in layers]))


def highest_of_each(layers: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Ascending numbers, int64, of the `counts[i]` highest entries of each layer of any real type; all lie `together`.

    Ties go to the lowest number.

    Returns:
        The numbers, which are void with a NaN, and whether there is one, a bool on the device.
    """
    sizes, flat = [layer.numel() for layer in layers], torch.cat([layer.reshape(-1) for layer in layers])
    starts = shifts(sizes, sizes, flat)
    falling = flat.sort(descending=True, stable=True).indices
    by_layer = falling[starts[falling].sort(stable=True).indices]
    wanted, repeats = flat.new_tensor([counts, sizes], dtype=torch.int64)
    limits = torch.repeat_interleave(wanted, repeats, output_size=len(flat))
    rank = torch.arange(len(flat), device=flat.device) - starts
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_put_((by_layer,), rank < limits).nonzero().squeeze(1)
    return list((chosen - starts[chosen]).split(list(counts))), flat.isnan().any()


def taken_of_each(lists: Sequence[Tensor], numbers: Sequence[Tensor]) -> list[Tensor]:
    """`lists[i][numbers[i]]` of each."""
    if not together([*lists, *numbers]):
        return [entries[some] for entries, some in zip(lists, numbers, strict=True)]
    counts = [len(some) for some in numbers]
    places = torch.cat([*numbers]) + shifts([len(entries) for entries in lists], counts, numbers[0])
    return list(torch.cat([*lists])[places].split(counts))


def ascending_of_each(
    lists: Sequence[Tensor], entries: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Each list of int64 positions inside [0, `sizes[i]`) in ascending order, with its entries; all lie `together`.

    Returns:
        The lists, their entries, and whether a position is repeated, a bool on the device.
    """
    counts = [len(some) for some in lists]
    behind = shifts(sizes, counts, lists[0])
    ordered, order = (torch.cat([*lists]) + behind).sort()
    repeated = (ordered[1:] == ordered[:-1]).any()
    return list((ordered - behind).split(counts)), list(torch.cat([*entries])[order].split(counts)), repeated


def shifts(sizes: Sequence[int], counts: Sequence[int], like: Tensor) -> Tensor:
    """For `counts[i]` numbers of each list the sizes of the lists before it, int64."""
    starts, repeats = like.new_tensor([starts_of(sizes)[:-1], counts], dtype=torch.int64)
    return torch.repeat_interleave(starts, repeats, output_size=sum(counts))


def starts_of(sizes: Sequence[int]) -> list[int]:
    """The sums of the sizes before each, and of all."""
    return [*accumulate(sizes, initial=0)]
