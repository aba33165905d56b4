"""What is measured: layers of ResNet-18, in how many bits, at which densities."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fedsparse.bench.cases import POINTWISE, STRIDED, SYMMETRIC, LayerCase

__all__ = ["COMPARED", "COUNTS", "DENSITIES", "OPS", "PASSES", "PRECISIONS", "Precision", "Sizes", "sizes"]

OPS = ("forward", "grad_x", "grad_w")  # of dense products
PASSES = ("forward", "backward")  # of sparse ones, whose gradients share launches


@dataclass(frozen=True)
class Precision:
    """How numbers are stored and multiplied.

    Attributes:
        name: as records and tables show it.
        dtype: of what is stored.
        tf32: whether dense float32 products may round their factors to 10 bits.
        tolerance: largest relative error against float64 of what is timed.
    """

    name: str
    dtype: torch.dtype
    tf32: bool
    tolerance: float

    def set(self) -> None:
        """Lets torch's own products compute this way."""
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32


PRECISIONS = {
    one.name: one
    for one in (
        Precision("bf16", torch.bfloat16, False, 1e-2),
        Precision("tf32", torch.float32, True, 2e-3),
        Precision("fp32", torch.float32, False, 1e-5),
    )
}
# Ours in one precision is held against every dense one of the same storage that is no more exact.
COMPARED = {"fp32": ("fp32", "tf32"), "tf32": ("tf32",), "bf16": ("bf16",)}

# How often each layer occurs in ResNet-18: sixteen 3x3 convolutions besides the first, three 1x1.
COUNTS: dict[str, int] = {
    **{case.shape: count for case, count in zip(SYMMETRIC, (4, 3, 3, 3), strict=True)},
    **{case.shape: 1 for case in (*STRIDED, *POINTWISE)},
}
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_WIDE = LayerCase(4096, 4096, None)


@dataclass(frozen=True)
class Sizes:
    """What a run measures.

    Attributes:
        cases: layers with their batches, those that matter most first.
        densities: in the order of measuring.
        repeats: timings of each, whose median counts.
        rotated: bytes of inputs that a timing goes through, more than caches hold.
        batches: of the training step.
        width: channels of the first stage of the step's ResNet-18.
        layouts: of the step's dense networks.
        clients: whose steps are computed at once.
    """

    cases: tuple[LayerCase, ...]
    densities: tuple[float, ...]
    repeats: int
    rotated: int
    batches: tuple[int, ...]
    width: int
    layouts: tuple[str, ...]
    clients: int


def sizes(*, cpu: bool) -> Sizes:
    """The protocol's, or for the dry run one small layer of each kind."""
    if cpu:
        tiny = (LayerCase(8, 8, 6, batch=3), LayerCase(12, 6, None, batch=3))
        return Sizes(
            cases=tiny, densities=(0.5,), repeats=2, rotated=1, batches=(2,), width=1, layouts=("nchw",), clients=2
        )
    return Sizes(
        cases=tuple(_full()),
        densities=(0.1, 0.05, 0.2, 0.01, 0.5, 0.02),
        repeats=30,
        rotated=60 << 20,
        batches=(32, 128),
        width=64,
        layouts=("nchw", "channels_last"),
        clients=8,
    )


def _full() -> Iterator[LayerCase]:
    for batch in (128, 32):
        yield from (replace(case, batch=batch) for case in (*SYMMETRIC, *STRIDED, *POINTWISE))
    yield from (replace(_WIDE, batch=batch) for batch in (256, 32))
