"""A training step of ResNet-18, counted kernel by kernel: dense as torch computes it, and with sparse convolutions.

Products of sparse layers are counted in `work.py`. Norms, ReLUs, sums, the loss and the optimiser are torch's on both
sides, with the same kernels for the same numbers; what copies activations at the two ends of a sparse network is ours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmarks.gpu.cases import COUNTS, OPS, PASSES
from benchmarks.gpu.roofline import ELEMENT, Work, dense_work, sizes_of
from benchmarks.gpu.torch_work import passed, tiny
from benchmarks.gpu.work import Count
from fedsparse.bench.cases import POINTWISE, STRIDED, SYMMETRIC, LayerCase

__all__ = ["convolutions", "dense_step", "folded", "sparse_step"]

_STEM, _CLASSES = LayerCase(3, 64, 32), LayerCase(512, 10, None)
_LOSS = 12  # pooling, widening, softmax, likelihood and scaling, forward and back, and the first gradient
_LINEAR = 4  # forward with its bias, two gradients, the bias's
_TURNS = 3  # the first layer's input, once for each product, and the last one's gradient
_OF_CHUNK, _CHUNKS, _TENSORS = 65536, 320, 64  # numbers of a block, and what a launch over many tensors takes
_MOMENTUM = 8  # accesses to a number: momentum decayed, then with the gradient, then the weight

# Accesses to an activation's number by torch's norms and ReLUs, kernel by kernel, and kernels that move next to none.
_NORM = (1, 2, 5)  # moments; normalised; backward, which reads both tensors twice
_NORM_TINY = 2  # running statistics, number of batches
_RELU = (2, 3)
_SUM = 3


def convolutions(batch: int) -> Iterator[LayerCase]:
    """Every prunable convolution of the network, as often as it occurs."""
    for case in (*SYMMETRIC, *STRIDED, *POINTWISE):
        yield from [replace(case, batch=batch)] * COUNTS[case.shape]


def dense_step(batch: int, precision: str) -> list[Work]:
    """Convolutions as one kernel an op, channels last, and all else."""
    cases = list(convolutions(batch))
    products = [work for case in cases for op in OPS for work in dense_work(case, op, precision)]
    return [*products, *_others(batch, precision, [sizes_of(case)[2] for case in cases])]


def sparse_step(batch: int, precision: str, density: float, count: Count) -> list[Work]:
    """The same where the convolutions but the first are sparse, with what `count` says of their kernels."""
    cases = list(convolutions(batch))
    kept = [round(density * sizes_of(case)[2]) for case in cases]
    products = [
        work
        for case, nnz in zip(cases, kept, strict=True)
        for op in PASSES
        for work in count(replace(case, density=density), op, nnz, precision)
    ]
    turned = passed(2 * ELEMENT[precision] * _outputs(replace(_STEM, batch=batch)))
    return [*products, *[turned] * _TURNS, *_others(batch, precision, kept)]


def folded(works: Iterable[Work], clients: int) -> list[Work]:
    """Kernels that do at once what they did for each of so many clients: activations and values stand side by side."""
    return [
        replace(
            work, flops=clients * work.flops, shared=clients * work.shared, memory=clients * work.memory,
            cache=clients * work.cache,
        )
        for work in works
    ]  # fmt: skip


def _outputs(case: LayerCase) -> int:
    return sizes_of(case)[1]


def _others(batch: int, precision: str, weights: list[int]) -> list[Work]:
    """All but the prunable convolutions, which have so many weights to be trained."""
    element, stem = ELEMENT[precision], replace(_STEM, batch=batch)
    first = [work for op in ("forward", "grad_w") for work in dense_work(stem, op, precision)]
    normed = [element * _outputs(case) for case in (stem, *convolutions(batch))]
    # Behind the stem, and twice in each block: behind its first convolution and its sum.
    rectified = [element * _outputs(c) for c in (stem, *convolutions(batch)) if c.kernel == 3]
    norms = [work for moved in normed for work in (*(passed(a * moved) for a in _NORM), *tiny(_NORM_TINY))]
    relus = [passed(a * moved) for moved in rectified for a in _RELU]
    sums = [passed(_SUM * element * count) for count in _sums(batch)]
    ends = tiny(_LINEAR + _LOSS)
    dense = [sizes_of(_STEM)[2], sizes_of(_CLASSES)[2], _CLASSES.outputs]
    affine = [case.outputs for case in (_STEM, *convolutions(batch)) for _ in range(2)]
    return [*first, *norms, *relus, *sums, *ends, *_optimiser([*weights, *dense, *affine], element)]


def _sums(batch: int) -> Iterator[int]:
    """Numbers of every sum: at the end of both blocks of a stage, and of the gradients of their inputs."""
    for place, case in enumerate(SYMMETRIC):
        own = _outputs(replace(case, batch=batch))
        entering = own if place == 0 else sizes_of(replace(STRIDED[place - 1], batch=batch))[0]
        yield from (own, own, own, entering)


def _optimiser(sizes: list[int], element: int) -> list[Work]:
    """torch's SGD with momentum over all parameters at once, in three operations of few launches."""
    chunks = sum(-(-size // _OF_CHUNK) for size in sizes)
    launches = max(-(-len(sizes) // _TENSORS), -(-chunks // _CHUNKS))
    moved = _MOMENTUM * element * sum(sizes) / (3 * launches)
    return [passed(moved)] * (3 * launches)
