"""Dense torch: cuDNN and cuBLAS on the same layers, every layout and precision; and what a mask costs besides."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.cases import OPS, PRECISIONS, Precision, Sizes, sizes
from benchmarks.gpu.context import Context
from benchmarks.gpu.operands import Operands, errors, geometry, moved_bytes
from benchmarks.gpu.record import Row
from benchmarks.gpu.roofline import dense_work, sizes_of
from benchmarks.gpu.sweep import Job, layer_of, row_of, sweep
from benchmarks.gpu.timing import Call, copies, measured
from fedsparse.bench.cases import LayerCase

__all__ = ["again", "network_row", "product", "prunable", "run"]

_LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
_SLACK = 10.0  # Winograd's float32, for one, is less exact than a sum; the error is in the row
_PRUNABLE = 11_157_504  # weights of ResNet-18's convolutions but the first


def run(context: Context) -> None:
    """Every case in every precision and layout, then the optimiser and the search for the largest gradients."""
    device = context.device()
    torch.backends.cudnn.benchmark = True
    sweep(context, _jobs(sizes(cpu=context.cpu), device))


def again(first: Row) -> float:
    """Seconds of the first row's case now, as it was measured then."""
    torch.backends.cudnn.benchmark = True
    cuda = first["device"] == "cuda"
    case = layer_of(first["layer"])
    found = _measured(case, PRECISIONS[first["precision"]], sizes(cpu=not cuda), first["device"], first["variant"])
    row = next(row for row in found if row["op"] == first["op"])
    return float((row["graph"] or row["eager"])["median"])


def _jobs(sizes: Sizes, device: str) -> Iterator[Job]:
    for case in sizes.cases:
        for precision in PRECISIONS.values():
            for layout in _LAYOUTS if case.size is not None else ("rows",):
                yield Job(
                    f"{case.shape} B{case.batch} {precision.name} {layout}",
                    lambda c=case, p=precision, v=layout: _measured(c, p, sizes, device, v),  # type: ignore[misc]
                )
    yield Job("foreach SGD and mask", lambda: _optimizer(sizes, device))
    yield Job("torch.topk", lambda: _topk(sizes, device))


# ---- layers
def _measured(case: LayerCase, precision: Precision, sizes: Sizes, device: str, layout: str) -> Iterable[Row]:
    precision.set()
    dense = replace(case, density=1.0)
    each = moved_bytes(dense, sizes_of(dense)[2], precision.dtype.itemsize)
    sets = [
        _laid_out(Operands.draw(dense, precision.dtype, device, seed=seed), layout)
        for seed in range(copies(each, sizes.rotated))
    ]
    wrong = errors({op: product(dense, op, sets[0])() for op in OPS}, sets[0], None, dense)
    for op in OPS:
        calls = [product(dense, op, one) for one in sets]
        row = {"who": "dense", "layer": row_of(dense), "op": op, "precision": precision.name, "variant": layout,
               "device": device, "copies": len(sets), "error": wrong[op]}  # fmt: skip
        if not wrong[op] <= _SLACK * precision.tolerance:
            raise ValueError(f"dense {op} is off by {wrong[op]:.1e} against float64")
        (work,) = dense_work(dense, op, precision.name)
        times = measured(calls, repeats=sizes.repeats, cuda=device == "cuda")
        yield {**row, **times.to_row(), "flops": work.flops, "bytes": work.memory}


def _laid_out(operands: Operands, layout: str) -> Operands:
    if layout not in _LAYOUTS:
        return operands
    x, grad, weight = (
        tensor.contiguous(memory_format=_LAYOUTS[layout]) for tensor in (operands.x, operands.grad, operands.weight)
    )
    return Operands(x, grad, weight)


def product(case: LayerCase, op: str, operands: Operands) -> Callable[[], Tensor]:
    """One op of a dense layer by torch."""
    x, grad, weight = operands.x, operands.grad, operands.weight
    moves = geometry(case)
    if moves is None:
        return {"forward": lambda: x @ weight.t(), "grad_x": lambda: grad @ weight, "grad_w": lambda: grad.t() @ x}[op]
    if op == "forward":
        return lambda: torch.nn.functional.conv2d(x, weight, None, moves.stride, moves.padding)
    want = [op == "grad_x", op == "grad_w", False]

    def backward() -> Tensor:
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, moves.stride, moves.padding, moves.dilation, False, [0, 0], 1, want
        )
        result: Tensor = found[want.index(True)]
        return result

    return backward


# ---- the whole network's weights
def _optimizer(sizes: Sizes, device: str) -> Iterable[Row]:
    """SGD with momentum over all dense weights as torch does it, and the multiplication that keeps pruned ones 0."""
    parameters = [torch.nn.Parameter(torch.randn(prunable(sizes) // 4, device=device)) for _ in range(4)]
    weights = [parameter.detach() for parameter in parameters]
    masks = [(torch.rand_like(weight) < 0.1).float() for weight in weights]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=True)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)

    def step() -> object:
        optimizer.step()
        return torch._foreach_mul_(weights, masks)

    yield network_row("sgd", "torch foreach SGD + mask", [step], sizes, device)


def _topk(sizes: Sizes, device: str) -> Iterable[Row]:
    gradient = torch.randn(prunable(sizes), device=device)
    k = max(gradient.numel() // 100, 1)
    yield network_row("topk", "torch abs + topk", [lambda: gradient.abs().topk(k)], sizes, device)


def network_row(op: str, who: str, calls: list[Call], sizes: Sizes, device: str) -> Row:
    """Times of work on all weights of the network."""
    times = measured(calls, repeats=sizes.repeats, cuda=device == "cuda")
    return {"who": who, "op": op, "precision": "fp32", "device": device, **times.to_row()}


def prunable(sizes: Sizes) -> int:
    """Prunable weights of the network; next to none in the dry run."""
    return _PRUNABLE if sizes.rotated > 1 else 256
