"""What moving the masks of a whole network costs: gradients searched, weights dropped, patterns and lists made anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import COUNTS, PRECISIONS, Precision, Sizes
from benchmarks.gpu.kinds import elements
from benchmarks.gpu.operands import Operands, geometry, told, unsearched, weight_shape
from benchmarks.gpu.record import Row
from benchmarks.gpu.stages.dense import laid_out, network_row, product
from benchmarks.gpu.sweep import Job
from fedsparse.backends import BATCH_INNERMOST
from fedsparse.backends.choose import BACKENDS
from fedsparse.backends.cuda_lists import build, problem_of
from fedsparse.bench.cases import LayerCase
from fedsparse.pattern import Move, Pattern, carry_all, exchange_all
from fedsparse.pruning import smallest

__all__ = ["OPS", "jobs"]

OPS = ("regrow", "prune")
_DENSITY = 0.1
_GROWN = 0.01  # of all positions, searched
_SWAPPED = 0.1  # of the kept weights, exchanged
_NEEDS = 4.0  # seconds, of which float64 gradients take the most

Found = tuple[Tensor, Tensor]  # flat positions and gradients


def jobs(sizes: Sizes, device: str) -> Iterable[Job]:
    """Ours and dense torch on all convolutions of the network, each checked before it is timed."""
    for name in ("bf16", "fp32", "tf32"):
        yield Job(f"regrow {name}", lambda p=PRECISIONS[name]: _regrow(sizes, device, p), _NEEDS)  # type: ignore[misc]
    yield Job("prune", lambda: _prune(sizes, device))


def _cases(sizes: Sizes) -> list[LayerCase]:
    """Convolutions of the network at its first batch, as often as each occurs."""
    convolutions = [case for case in sizes.cases if case.size is not None and case.batch == sizes.cases[0].batch]
    return [replace(case, density=_DENSITY) for case in convolutions for _ in range(COUNTS.get(case.shape, 1))]


def _placed(device: str) -> torch.device:
    return torch.device(device, 0) if device == "cuda" else torch.device(device)


def _pattern(case: LayerCase, device: str, seed: int) -> Pattern:
    mask = elements(weight_shape(case), case.density, torch.Generator().manual_seed(seed))
    return Pattern.from_mask(mask).to(_placed(device))


# ---- regrow
@dataclass(frozen=True)
class _Layer:
    """A layer to be searched for `k` gradients."""

    case: LayerCase
    operands: Operands
    pattern: Pattern
    mask: Tensor
    k: int


def _layers(sizes: Sizes, device: str, precision: Precision) -> list[_Layer]:
    layers = []
    for seed, case in enumerate(_cases(sizes)):
        pattern = _pattern(case, device, seed)
        operands = Operands.draw(case, precision.dtype, device, seed=seed)
        layers.append(_Layer(case, operands, pattern, pattern.mask(), max(round(_GROWN * pattern.size), 1)))
    return layers


def _regrow(sizes: Sizes, device: str, precision: Precision) -> Iterable[Row]:
    """Ours, of what lies as a network of our layers hands it over, and dense torch."""
    precision.set()
    layers = _layers(sizes, device, precision)
    innermost = device == "cuda"
    given = [_handed_over(layer.operands) if innermost else layer.operands for layer in layers]
    backend = BACKENDS["cuda" if innermost else "cpu"]

    def search() -> list[Found]:
        return [
            backend.topk_pruned(
                operands.grad, operands.x, layer.pattern, layer.k,
                told(layer.case, layer.pattern.nnz, precision.dtype, device),
            )
            for layer, operands in zip(layers, given, strict=True)
        ]  # fmt: skip

    yield _checked("ours", search, layers, precision, sizes, device)
    yield from _dense_regrow(sizes, device, precision)


def _dense_regrow(sizes: Sizes, device: str, precision: Precision) -> Iterable[Row]:
    """In every layout of pictures, cuDNN's search on."""
    precision.set()
    torch.backends.cudnn.benchmark = True
    for layout in sizes.layouts:
        layers = [
            replace(layer, operands=laid_out(layer.operands, layout)) for layer in _layers(sizes, device, precision)
        ]

        def search(layers: list[_Layer] = layers) -> list[Found]:
            return [_by_torch(layer) for layer in layers]

        yield _checked(f"torch, dense gradient + mask + topk, {layout}", search, layers, precision, sizes, device)


def _handed_over(operands: Operands) -> Operands:
    return replace(operands, x=BATCH_INNERMOST.of(operands.x), grad=BATCH_INNERMOST.of(operands.grad))


def _by_torch(layer: _Layer) -> Found:
    gradient = product(layer.case, "grad_w", layer.operands)().masked_fill(layer.mask, 0).flatten()
    positions = gradient.abs().topk(layer.k, sorted=False).indices
    return positions, gradient[positions]


def _checked(
    who: str, search: Callable[[], Sequence[Found]], layers: Sequence[_Layer], precision: Precision, sizes: Sizes,
    device: str,
) -> Row:  # fmt: skip
    for layer, (positions, gradients) in zip(layers, search(), strict=True):
        error = _error(layer, positions, gradients)
        if not error <= precision.tolerance:
            raise ValueError(f"{who}, {precision.name}, {layer.case}: off by {error:.1e} against float64")
    name = f"{who}, {len(layers)} layers, batch {layers[0].case.batch}, {precision.name}"
    return {**network_row("regrow", name, [search], sizes, device), "precision": precision.name}


def _error(layer: _Layer, positions: Tensor, gradients: Tensor) -> float:
    """Of the gradients and of what they should have been, over the largest; infinite for positions that are no k pruned
    ones."""
    if len(positions.unique()) != layer.k or bool(layer.mask.flatten()[positions].any()):
        return float("inf")
    exact = _exact(layer).masked_fill(layer.mask, 0).flatten()
    wanted = exact.abs().topk(layer.k).values
    chosen = exact[positions].abs().sort(descending=True).values
    off = torch.stack([(gradients.double() - exact[positions]).abs().max(), (chosen - wanted).abs().max()])
    return float(off.max() / wanted[0])


def _exact(layer: _Layer) -> Tensor:
    """The dense gradient in float64."""
    moves = geometry(layer.case)
    assert moves is not None
    weight = layer.operands.weight.double().requires_grad_()
    with unsearched():
        y = F.conv2d(layer.operands.x.double(), weight, None, moves.stride, moves.padding)
        (gradient,) = torch.autograd.grad(y, weight, layer.operands.grad.double())
    return gradient


# ---- prune
@dataclass(frozen=True)
class _Move:
    """A layer of which `k` weights are dropped and the positions `grown`, as many, are kept instead."""

    case: LayerCase
    pattern: Pattern
    weight: Tensor
    momentum: Tensor
    grown: Tensor

    @property
    def k(self) -> int:
        return len(self.grown)


def _moves(sizes: Sizes, device: str) -> list[_Move]:
    moves = []
    for seed, case in enumerate(_cases(sizes)):
        pattern, generator = _pattern(case, device, seed), torch.Generator(device).manual_seed(seed)
        weight, momentum = torch.randn((2, *pattern.shape), generator=generator, device=device) * pattern.mask()
        pruned = (~pattern.mask()).flatten().nonzero().squeeze(1)
        grown = pruned[:: max(len(pruned) // max(round(_SWAPPED * pattern.nnz), 1), 1)]
        moves.append(_Move(case, pattern, weight, momentum, grown[: max(round(_SWAPPED * pattern.nnz), 1)]))
    return moves


def _prune(sizes: Sizes, device: str) -> Iterable[Row]:
    """Ours, the same with the lists of a bfloat16 network, and torch on dense weights."""
    moves = _moves(sizes, device)
    values = [(m.pattern.gather(m.weight), m.pattern.gather(m.momentum)) for m in moves]

    def exchange() -> list[tuple[Pattern, Tensor, Tensor]]:
        dropped = smallest([kept for kept, _ in values], [move.k for move in moves])
        new = exchange_all([(m.pattern, numbers, m.grown) for m, numbers in zip(moves, dropped, strict=True)])
        carried = carry_all(
            [
                Move(m.pattern, there, [(weights, 0.0), (momentum, 0.0)])
                for m, there, (weights, momentum) in zip(moves, new, values, strict=True)
            ]
        )
        return [(there, weights, momentum) for there, (weights, momentum) in zip(new, carried, strict=True)]

    def exchange_and_list() -> object:
        found = exchange()
        return found, _listed([(m.case, there) for m, (there, *_) in zip(moves, found, strict=True)], device)

    for move, ours, theirs in zip(moves, exchange(), [_on_dense(move) for move in moves], strict=True):
        _require_equal(move, ours, theirs)
    name = f"{len(moves)} layers, {_SWAPPED:g} of the weights at density {_DENSITY:g}"
    yield network_row("prune", f"ours, {name}", [exchange], sizes, device)
    if device == "cuda":  # only its kernels read lists
        yield network_row("prune", f"ours with lists, {name}", [exchange_and_list], sizes, device)
    yield network_row("prune", f"torch, dense, {name}", [lambda: [_on_dense(move) for move in moves]], sizes, device)


def _listed(layers: Sequence[tuple[LayerCase, Pattern]], device: str) -> object:
    asked = [told(case, pattern.nnz, torch.bfloat16, device) for case, pattern in layers]
    problems = [[problem_of(case, backward=backward) for backward in (False, True)] for case in asked]
    return build([*zip(problems, (pattern for _, pattern in layers), strict=True)])


def _on_dense(move: _Move) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, weight and momentum after the move."""
    mask = move.weight != 0
    hidden = move.weight.abs().masked_fill(~mask, float("inf")).flatten()
    dropped = hidden.topk(move.k, largest=False, sorted=False).indices
    new = mask.flatten().index_fill(0, dropped, False).index_fill(0, move.grown, True).view(mask.shape)
    return new, move.weight * new, move.momentum * new


def _require_equal(move: _Move, ours: tuple[Pattern, Tensor, Tensor], theirs: tuple[Tensor, Tensor, Tensor]) -> None:
    (pattern, *mine), (mask, *dense) = ours, theirs
    same = torch.equal(pattern.mask(), mask)
    if not same or not all(torch.equal(a, pattern.gather(b)) for a, b in zip(mine, dense, strict=True)):
        raise ValueError(f"{move.case}: the pattern or the values differ from what dense torch makes of them")
