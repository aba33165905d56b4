"""A training step of ResNet-18, counted kernel by kernel: dense as torch computes it, and with sparse convolutions.

Products of sparse layers are counted in `work.py`, their networks' norms, with ReLUs and residual sums, in
`norm_work.py`. Sums of gradients, the loss and the optimiser are torch's on both sides, with the same kernels for the
same numbers; what copies activations at the two ends of a sparse network is ours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from benchmarks.gpu.cases import COUNTS, OPS, PASSES
from benchmarks.gpu.norm_work import norm
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


def dense_step(batch: int, precision: str, *, fused: bool = False) -> list[Work]:
    """Convolutions as one kernel an op and all else; `fused`: with our norms."""
    cases = list(convolutions(batch))
    products = [work for case in cases for op in OPS for work in dense_work(case, op, precision)]
    others = _others(batch, precision, [sizes_of(case)[2] for case in cases])
    element = ELEMENT[precision]
    return [*products, *others, *(_fused_norms(batch, element, 1) if fused else _torch_norms(batch, element))]


def sparse_step(batch: int, precision: str, density: float, count: Count, clients: int = 1) -> list[Work]:
    """The same where the convolutions but the first are sparse, with what `count` says of their kernels.

    Of so many clients at once, whose activations and values stand side by side.
    """
    cases = list(convolutions(batch))
    kept = [round(density * sizes_of(case)[2]) for case in cases]
    products = [
        work
        for case, nnz in zip(cases, kept, strict=True)
        for op in PASSES
        for work in count(replace(case, density=density), op, nnz, precision)
    ]
    turned = passed(2 * ELEMENT[precision] * _outputs(replace(_STEM, batch=batch)))
    others = [*products, *[turned] * _TURNS, *_others(batch, precision, kept)]
    return [*folded(others, clients), *_fused_norms(batch, ELEMENT[precision], clients)]


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


def _normed(batch: int) -> list[LayerCase]:
    """Convolutions with a norm behind them: all."""
    return [replace(_STEM, batch=batch), *convolutions(batch)]


def _torch_norms(batch: int, element: int) -> list[Work]:
    """Norms, residual sums and ReLUs as torch computes them."""
    norms = [
        work
        for case in _normed(batch)
        for work in (*(passed(accesses * element * _outputs(case)) for accesses in _NORM), *tiny(_NORM_TINY))
    ]
    sums = [passed(_SUM * element * _outputs(case)) for case in _block_ends(batch)]
    # Behind the stem, and twice in each block: behind its first convolution and its sum.
    rectified = [element * _outputs(case) for case in _normed(batch) if case.kernel == 3]
    return [*norms, *sums, *(passed(accesses * moved) for moved in rectified for accesses in _RELU)]


def _fused_norms(batch: int, element: int, clients: int) -> list[Work]:
    """The same as our kernels compute them, a launch for a norm with what follows it."""
    summed, alone = _block_ends(batch), _normed(batch)
    for case in summed:
        alone.remove(case)
    works = [norm(clients * case.outputs, batch * case.places, element) for case in alone]
    works += [norm(clients * case.outputs, batch * case.places, element, summed=True) for case in summed]
    return [work for of_norm in works for work in of_norm]


def _others(batch: int, precision: str, weights: list[int]) -> list[Work]:
    """All but `_torch_norms` and the prunable convolutions, which have so many weights to be trained."""
    element, stem = ELEMENT[precision], replace(_STEM, batch=batch)
    first = [work for op in ("forward", "grad_w") for work in dense_work(stem, op, precision)]
    sums = [passed(_SUM * element * count) for count in _sums(batch)]
    ends = tiny(_LINEAR + _LOSS)
    dense = [sizes_of(_STEM)[2], sizes_of(_CLASSES)[2], _CLASSES.outputs]
    affine = [case.outputs for case in (_STEM, *convolutions(batch)) for _ in range(2)]
    return [*first, *sums, *ends, *_optimiser([*weights, *dense, *affine], element)]


def _block_ends(batch: int) -> list[LayerCase]:
    """Last convolutions of the blocks, of which every stage has two: behind them are the residual sums."""
    return [replace(case, batch=batch) for case in SYMMETRIC for _ in range(2)]


def _sums(batch: int) -> Iterator[int]:
    """Numbers of every sum of gradients: of the inputs of both blocks of a stage."""
    for place, case in enumerate(SYMMETRIC):
        own = _outputs(replace(case, batch=batch))
        yield own
        yield own if place == 0 else sizes_of(replace(STRIDED[place - 1], batch=batch))[0]


def _optimiser(sizes: list[int], element: int) -> list[Work]:
    """torch's SGD with momentum over all parameters at once, in three operations of few launches."""
    chunks = sum(-(-size // _OF_CHUNK) for size in sizes)
    launches = max(-(-len(sizes) // _TENSORS), -(-chunks // _CHUNKS))
    moved = _MOMENTUM * element * sum(sizes) / (3 * launches)
    return [passed(moved)] * (3 * launches)
