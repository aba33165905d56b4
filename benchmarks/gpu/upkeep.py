"""What a sparse network costs besides its products: activations packed and restored, and positions swapped."""

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.gpu.cases import Sizes
from benchmarks.gpu.record import Row
from benchmarks.gpu.stages.dense import network_row
from benchmarks.gpu.sweep import Job
from fedsparse import pruning
from fedsparse.backends.activation import Pruning, Rule, keep, plain_pack, plain_unpack, restore
from fedsparse.pattern import Pattern

__all__ = ["OPS", "jobs"]

OPS = ("pack", "unpack", "swap")
_RULES: tuple[Rule, ...] = ("tile", "global")


def jobs(sizes: Sizes, device: str) -> Iterable[Job]:
    """Ours, and for activations the same rule in plain torch."""
    for rule in _RULES:
        yield Job(f"activations {rule}", lambda rule=rule: _activations(sizes, device, rule))  # type: ignore[misc]
    yield Job("swap_all", lambda: _swap(sizes, device))


def _activations(sizes: Sizes, device: str, rule: Rule) -> Iterable[Row]:
    """Input of a convolution of the first stage, half of it kept in 16 bits."""
    x = torch.randn(sizes.batches[-1], sizes.width, 32, 32, device=device).relu()
    pruning, shape = Pruning(0.5, rule, torch.bfloat16), tuple(x.shape)
    ours, plain = keep(x, pruning), plain_pack(x, pruning)
    if not torch.equal(restore(ours, shape, x.dtype), plain_unpack(plain, shape, x.dtype)):
        raise ValueError(f"activations pruned by the rule {rule!r} differ from those of plain torch")
    name = f"input of {shape}, {rule}, keep 0.5"
    yield network_row("pack", f"ours, {name}", [lambda: keep(x, pruning)], sizes, device)
    yield network_row("pack", f"torch, {name}", [lambda: plain_pack(x, pruning)], sizes, device)
    yield network_row("unpack", f"ours, {name}", [lambda: restore(ours, shape, x.dtype)], sizes, device)
    yield network_row("unpack", f"torch, {name}", [lambda: plain_unpack(plain, shape, x.dtype)], sizes, device)


def _swap(sizes: Sizes, device: str) -> Iterable[Row]:
    """A tenth of the kept weights of four convolutions at density 0.1, where they lie."""
    width, where = 8 * sizes.width, torch.device(device, 0) if device == "cuda" else torch.device(device)
    generator = torch.Generator().manual_seed(0)
    patterns: dict[str, Pattern] = {}
    values: dict[str, Tensor] = {}
    candidates: dict[str, tuple[Tensor, Tensor]] = {}
    for name in "abcd":
        mask = torch.rand(width, width, 3, 3, generator=generator) < 0.1
        patterns[name] = Pattern.from_mask(mask).to(where)
        values[name] = torch.randn(patterns[name].nnz, generator=generator).to(where)
        pruned = (~mask).view(-1).nonzero().squeeze(1)[::10].to(where)
        candidates[name] = pruned, torch.randn(len(pruned), generator=generator).to(where)
    counts = {name: len(kept) // 10 for name, kept in values.items()}
    who = f"swap_all of four ({width}, {width}, 3, 3)"
    yield network_row("swap", who, [lambda: pruning.swap_all(patterns, values, candidates, counts)], sizes, device)
