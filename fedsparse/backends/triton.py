"""The Triton kernels: what a GPU computes with where fedsparse was installed without a CUDA compiler.

Rows that share their kept columns are multiplied on tensor cores (kernels/tile_product.py), others with scalar
multiply-adds (kernels/element_product.py). float32 is multiplied as three TF32 products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fedsparse.backends.base import Backend, Case, Gradients
from fedsparse.backends.lists import Change, PatternLists
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.tap_tiles import TapTiles, build, rows_of
from fedsparse.pattern import Pattern

__all__ = ["TritonBackend"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LIMIT = 1 << 31  # numbers of a tensor, whose distances have 32 bits


@dataclass(frozen=True, eq=False)
class TritonBackend:
    """Gathers over pixels in NCHW, on the caller's stream.

    Lists of taps are built on the device when a pattern is first met and live as long as its index tensors.

    Attributes:
        rows: rows of a tile whatever the pattern, 1 for the scalar kernels; None takes what fits the pattern.
    """

    rows: int | None = None
    name = "triton"
    _lists: PatternLists[TapTiles] = field(default_factory=PatternLists, repr=False)

    def refuse(self, case: Case) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed; get it with `pip install 'fedsparse[triton]'`"
        from fedsparse.kernels.tuning import interpreted
        from fedsparse.kernels.window import LARGEST_KERNEL

        if case.device != "cuda" and not interpreted():
            return f"triton kernels read the memory of a CUDA device, the tensors are on {case.device}"
        if case.dtype not in _DTYPES:
            return f"triton kernels store float32, bfloat16 or float16, the tensors are {_short(case.dtype)}"
        if max(math.prod(case.input), math.prod(case.output)) >= _LIMIT:
            return f"tensors must stay below 2^31 numbers, got an input of shape {case.input}"
        if max(case.shape[2:], default=1) > LARGEST_KERNEL:
            return f"kernels reach at most {LARGEST_KERNEL} pixels either way, got {case.shape[2:]}"
        return None

    def forward(self, x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None, case: Case) -> Tensor:
        tiles = self._tiles(pattern, case, transposed=False)
        return _product(x, values, bias, tiles, case, transposed=False)

    def backward(
        self, grad: Tensor, x: Tensor, values: Tensor, pattern: Pattern, want: tuple[bool, bool], case: Case
    ) -> Gradients:
        grad_x, grad_values = None, None
        if want[0]:
            grad_x = _product(grad, values, None, self._tiles(pattern, case, transposed=True), case, transposed=True)
        if want[1]:
            grad_values = _sampled(grad, x, case.nnz, self._tiles(pattern, case, transposed=False), case)
        return Gradients(grad_x, grad_values)

    def topk_pruned(self, grad: Tensor, x: Tensor, pattern: Pattern, k: int, case: Case) -> tuple[Tensor, Tensor]:
        # Dense products of a chunk of rows at a time are what tensor cores are for.
        return MaskedBackend().topk_pruned(grad, x, pattern, k, case)

    def _tiles(self, pattern: Pattern, case: Case, *, transposed: bool) -> TapTiles:
        """The lists of a pattern, built at the first call; batches and pictures of every size share them."""
        groups = case.geometry.groups if case.geometry else 1
        key = (pattern.shape, groups, str(pattern.granularity), transposed)
        device = pattern.column.device

        def tiles(of: Pattern) -> TapTiles:
            here = of.to(device)
            return build(here, case, self._candidates(here, case, transposed), transposed=transposed)

        return self._lists.get(pattern, key, tiles)

    def rewrite(self, changes: Sequence[Change]) -> list[bool]:
        return self._lists.rewrite(changes)

    def _candidates(self, pattern: Pattern, case: Case, transposed: bool) -> tuple[int, ...]:
        if self.rows is not None:
            return (self.rows,)
        if not transposed:
            return rows_of(pattern)
        rows = self._tiles(pattern, case, transposed=False).rows
        # Input channels share their taps under block only; others are united in the smallest tile.
        return (1,) if rows == 1 else (64, 32, 16)


def _product(
    source: Tensor, values: Tensor, bias: Tensor | None, tiles: TapTiles, case: Case, *, transposed: bool
) -> Tensor:
    scalar, shape = tiles.rows == 1, case.input if transposed else case.output
    target = source.new_empty(shape)
    if scalar and case.geometry is None:
        target = source.new_empty(shape[1], shape[0]).t()  # a row's neighbouring samples are written together
    _kernel("element_product" if scalar else "tile_product")(
        tiles.pack(values), _picture(source, tiles), _view(target), bias, _native(tiles), _window(case),
        transposed=transposed,
    )  # fmt: skip
    return target


def _sampled(grad: Tensor, x: Tensor, nnz: int, tiles: TapTiles, case: Case) -> Tensor:
    scalar = tiles.rows == 1
    run = _kernel("element_sampled" if scalar else "tile_sampled")
    slope = _picture(grad, tiles) if scalar else _view(grad)
    packed: Tensor = run(slope, _picture(x, tiles), tiles.packed_size or nnz, _native(tiles), _window(case))
    return tiles.unpack(packed)


# ---- (batch, features) as one picture of a row of pixels
def _view(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x.t()[None, :, None, :]


def _picture(x: Tensor, tiles: TapTiles) -> Tensor:
    """A view where gathers read whole memory sectors: samples side by side, or taps that run over features."""
    if x.dim() == 2 and (tiles.rows == 1 or not tiles.runs):
        return x.t().contiguous()[None, :, None, :]
    return _view(x)


# ---- the kernels, which need Triton
def _kernel(name: str) -> Callable[..., Any]:
    kernel: Callable[..., Any] = getattr(import_module(f"fedsparse.kernels.{name}"), name)
    return kernel


def _native(tiles: TapTiles) -> object:
    from fedsparse.kernels.tile_product import Tiles

    return Tiles(tiles.start, tiles.entry, tiles.rows, tiles.longest)


def _window(case: Case) -> object:
    from fedsparse.kernels.window import Window

    g = case.geometry
    return Window() if g is None else Window((case.shape[2], case.shape[3]), g.stride, g.padding, g.dilation)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_: type[Backend] = TritonBackend
