"""What a sparse network costs besides its products: activations packed and restored, units swapped, lists made anew."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.cases import Sizes
from benchmarks.gpu.record import Row
from benchmarks.gpu.stages.dense import network_row
from benchmarks.gpu.sweep import Job
from fedsparse import pruning
from fedsparse.backends import Case, Geometry
from fedsparse.backends.activation import Pruning, Rule, keep, plain_pack, plain_unpack, restore
from fedsparse.backends.cuda_lists import alike, build, listed
from fedsparse.pattern import Pattern, parse

__all__ = ["OPS", "jobs", "lists"]

OPS = ("pack", "unpack", "swap", "lists")
_RULES: tuple[Rule, ...] = ("tile", "global")
_UNITS = ("element", "vector:16", "block:16")
_LAYERS = "abcd"


def jobs(sizes: Sizes, device: str) -> Iterable[Job]:
    """Ours, and of activations the same in plain torch, by sorting and by `topk`. Only the CUDA kernels read lists."""
    for rule in _RULES:
        yield Job(f"activations {rule}", lambda rule=rule: _activations(sizes, device, rule))  # type: ignore[misc]
    for unit in _UNITS:
        yield Job(f"swap_all {unit}", lambda unit=unit: _swap(sizes, device, unit))  # type: ignore[misc]
        if device == "cuda":
            yield Job(f"lists {unit}", lambda unit=unit: lists(sizes, device, unit))  # type: ignore[misc]


def _activations(sizes: Sizes, device: str, rule: Rule) -> Iterable[Row]:
    """Input of a convolution of the first stage, half of it kept in 16 bits."""
    x = torch.randn(sizes.batches[-1], sizes.width, 32, 32, device=device).relu()
    pruning, shape = Pruning(0.5, rule, torch.bfloat16), tuple(x.shape)
    ours, plain = keep(x, pruning), plain_pack(x, pruning)
    if not torch.equal(restore(ours, shape, x.dtype), plain_unpack(plain, shape, x.dtype)):
        raise ValueError(f"activations pruned by the rule {rule!r} differ from those of plain torch")
    selected = _by_topk(x, pruning)
    # What of equal elements is kept is not said; zeros are kept by one and not by the other.
    if not torch.equal(
        _restored(selected, x, pruning).sort().values, restore(ours, shape, x.dtype).flatten().sort().values
    ):
        raise ValueError(f"activations pruned by the rule {rule!r} differ from those that topk keeps")
    name = f"input of {shape}, {rule}, keep 0.5"
    yield network_row("pack", f"ours, {name}", [lambda: keep(x, pruning)], sizes, device)
    yield network_row("pack", f"torch, {name}", [lambda: plain_pack(x, pruning)], sizes, device)
    yield network_row("pack", f"torch abs + topk + gather, {name}", [lambda: _by_topk(x, pruning)], sizes, device)
    yield network_row("unpack", f"ours, {name}", [lambda: restore(ours, shape, x.dtype)], sizes, device)
    yield network_row("unpack", f"torch, {name}", [lambda: plain_unpack(plain, shape, x.dtype)], sizes, device)


def _tiles(x: Tensor, pruning: Pruning) -> Tensor:
    return x.view(1, -1) if pruning.rule == "global" else x.flatten(1)


def _by_topk(x: Tensor, pruning: Pruning) -> tuple[Tensor, Tensor]:
    """Positions and values of what stays, the least that torch can do."""
    tiles = _tiles(x, pruning)
    positions = tiles.abs().topk(pruning.count(tiles.shape[1]), dim=1, sorted=False).indices
    return positions, tiles.gather(1, positions).to(pruning.dtype or x.dtype)


def _restored(selected: tuple[Tensor, Tensor], x: Tensor, pruning: Pruning) -> Tensor:
    positions, values = selected
    return torch.zeros_like(_tiles(x, pruning)).scatter_(1, positions, values.to(x.dtype)).flatten()


def _swap(sizes: Sizes, device: str, unit: str) -> Iterable[Row]:
    """A tenth of the kept weights of four convolutions at density 0.1, where they lie."""
    patterns, generator = _patterns(sizes, device, unit), torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = {}
    candidates: dict[str, tuple[Tensor, Tensor]] = {}
    for name, pattern in patterns.items():
        where = pattern.column.device
        pruned = (~pattern.mask()).view(-1).nonzero().squeeze(1)[::10]
        values[name] = torch.randn(pattern.nnz, generator=generator).to(where)
        candidates[name] = pruned, torch.randn(len(pruned), generator=generator).to(where)
    counts = {name: len(kept) // 10 for name, kept in values.items()}
    who = f"swap_all of four {patterns['a'].shape}, {unit}"
    yield network_row("swap", who, [lambda: pruning.swap_all(patterns, values, candidates, counts)], sizes, device)


def lists(sizes: Sizes, device: str, unit: str) -> Iterable[Row]:
    """What both directions of four bfloat16 convolutions read of their patterns, which have just changed.

    With the wait for what the patterns are like, and without, as one graph can hold it.
    """
    patterns, where = _patterns(sizes, device, unit), _placed(device)
    shape = patterns["a"].shape
    case = Case(shape, (1, shape[1], 8, 8), 0, Geometry(padding=(1, 1)), torch.bfloat16, device)
    tasks = [(p, replace(case, nnz=p.nnz), backward) for p in patterns.values() for backward in (False, True)]
    known = [(*task, alike(task[0])) for task in tasks]
    who = f"lists of four {shape}, both directions, {unit}"
    yield network_row("lists", who, [lambda: [build(*task, where) for task in tasks]], sizes, device)
    yield network_row("lists", f"{who}, known strips", [lambda: [listed(*task) for task in known]], sizes, device)


def _patterns(sizes: Sizes, device: str, unit: str) -> dict[str, Pattern]:
    granularity, generator = parse(unit), torch.Generator().manual_seed(0)
    shape = (8 * sizes.width, 8 * sizes.width, 3, 3)
    tiling = granularity.tiling(shape)
    masks = {name: tiling.spread(torch.rand(tiling.count, generator=generator) < 0.1).view(shape) for name in _LAYERS}
    return {name: Pattern.from_mask(mask, granularity).to(_placed(device)) for name, mask in masks.items()}


def _placed(device: str) -> torch.device:
    return torch.device(device, 0) if device == "cuda" else torch.device(device)
