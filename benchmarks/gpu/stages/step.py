"""A whole training step of ResNet-18: dense and sparse, called from Python and replayed from a graph; memory.

Batch norms and ReLUs are torch's in a dense network, and on a device Triton kernels in a sparse one.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs
from benchmarks.gpu.cases import PRECISIONS, Precision, Sizes, sizes
from benchmarks.gpu.context import Context
from benchmarks.gpu.kinds import Kind, of_device
from benchmarks.gpu.record import Row
from benchmarks.gpu.sweep import Job, sweep
from benchmarks.gpu.timing import Call, Times, seconds_of
from fedsparse.nn import capture_step, fold

__all__ = ["again", "run"]

_DENSITY = 0.1
_WARMUP = 3
_COMPILING = 30.0  # seconds that torch.compile is thought to need at most
_PIXELS = 32
_CLASSES = 10
_SLACK = 20  # layers, each of which may be off by what its precision allows
_KEEP = 0.5
_FUSED = "dense, norms fused"  # by our kernels: what they gain without any sparsity; no baseline
_PRUNED = f"keep {_KEEP} bf16"  # activations pruned, what is kept of them stored as bfloat16


@dataclass(frozen=True)
class Contender:
    """One network and how it is stored.

    Attributes:
        who: `dense`, the same with our norms, or the kind's name.
        variant: layout of a dense network's pictures, or `compile`; of a sparse one whether its activations are pruned.
        precision: of all numbers.
        batch: pictures.
        kind: of the sparse layers; None for a dense network.
        clients: networks that are trained at once, with `batch` pictures each.
    """

    who: str
    variant: str
    precision: Precision
    batch: int
    kind: Kind | None = None
    clients: int = 1


def run(context: Context) -> None:
    """The smaller batch first, then several clients at once; torch.compile last, which takes longest to start."""
    device = context.device()
    torch.backends.cudnn.benchmark = True
    sweep(context, _jobs(sizes(cpu=context.cpu), device))


def again(first: Row) -> float:
    """Seconds of the first row's step now."""
    torch.backends.cudnn.benchmark = True
    cuda = first["device"] == "cuda"
    one = Contender(first["who"], first["variant"], PRECISIONS[first["precision"]], first["batch"])  # a dense one
    (row,) = _measured(one, sizes(cpu=not cuda), first["device"])
    return float((row["graph"] or row["eager"])["median"])


def _jobs(sizes: Sizes, device: str) -> Iterator[Job]:
    for one in _contenders(sizes, device):
        yield _job(one, sizes, device)
    if device == "cuda":  # the dry run does without a compiler
        for batch in sizes.batches:
            yield _job(Contender("dense", "compile", PRECISIONS["bf16"], batch), sizes, device, needs=_COMPILING)


def _job(one: Contender, sizes: Sizes, device: str, *, needs: float = 2.0) -> Job:
    name = f"{one.who} {one.variant} B{one.batch} {one.precision.name}"
    return Job(name, lambda: _measured(one, sizes, device), needs)


def _contenders(sizes: Sizes, device: str) -> Iterator[Contender]:
    for batch in sizes.batches:
        for precision in PRECISIONS.values():
            for layout in sizes.layouts:
                yield Contender("dense", layout, precision, batch)
            if device == "cuda":
                yield Contender(_FUSED, "nchw", precision, batch)
            for kind in _stepped(device):
                if precision.name in kind.precisions:
                    yield Contender(kind.name, "", precision, batch, kind)
                    yield Contender(kind.name, _PRUNED, precision, batch, kind)
    for kind in _stepped(device):
        for name in kind.precisions:
            yield Contender(kind.name, "folded", PRECISIONS[name], sizes.batches[0], kind, sizes.clients)


def _stepped(device: str) -> list[Kind]:
    return [kind for kind in of_device(device) if kind.steps]


# ---- one network
def _measured(one: Contender, sizes: Sizes, device: str) -> Iterable[Row]:
    one.precision.set()
    cuda = device == "cuda"
    model, x, y = _network(one, sizes, device)
    if one.clients > 1:
        _require_alike(one, model, x, sizes, device)
    peak = None  # what a compiled step holds cannot be told from what its compiler does
    if one.variant == "compile":
        model.compile()
    else:
        peak = _peak_bytes(model, x, y, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    step = _step(model, optimizer, x, y)
    for _ in range(_WARMUP):
        step()
    saved = _saved_bytes(model, x, y) if cuda else None
    eager = seconds_of(step, repeats=sizes.repeats, cuda=cuda)
    times = Times(eager, None, "no CUDA device")
    if cuda:
        try:
            captured = capture_step(model, optimizer, partial(_loss, model), (x, y))
            times = Times(eager, seconds_of(lambda: captured(x, y), repeats=sizes.repeats, cuda=True))
        except Exception as error:  # what cannot be captured is still timed one by one
            torch.cuda.synchronize()
            times = Times(eager, None, f"{type(error).__name__}: {error}"[:300])
    yield {
        "who": one.who, "variant": one.variant, "op": "step", "precision": one.precision.name, "batch": one.batch,
        "device": device, "density": _DENSITY if one.kind else 1.0, "clients": one.clients,
        **times.to_row(), "peak_bytes": peak, "saved_bytes": saved,
    }  # fmt: skip


def _network(one: Contender, sizes: Sizes, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = fs.models.resnet18(width=sizes.width)
    if one.kind is not None:
        fs.sparsify(model, _DENSITY, distribution="uniform", granularity=one.kind.granularity, exclude="ends")
    model = model.to(device, one.precision.dtype)
    if one.kind is not None:
        fs.set_backend(model, one.kind.backend)
    if one.variant == _PRUNED:
        fs.nn.prune_activations(model, _KEEP, dtype=torch.bfloat16)
    if one.clients > 1:
        model = fold([model] * one.clients)
    if (one.kind is not None or one.who == _FUSED) and device == "cuda":
        fs.nn.fuse_norms(model)  # activations that are pruned bring the same along
    pixels = _PIXELS if sizes.width > 8 else 8
    x = torch.randn(one.batch, 3 * one.clients, pixels, pixels, device=device).to(one.precision.dtype)
    if one.variant in ("channels_last", "compile"):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    return model, x, torch.randint(_CLASSES, (one.batch * one.clients,), device=device)


def _require_alike(one: Contender, together: nn.Module, x: Tensor, sizes: Sizes, device: str) -> None:
    """Raises ValueError where the last of folded networks does not compute what it does alone."""
    alone, _, _ = _network(replace(one, clients=1), sizes, device)
    with torch.no_grad():
        wanted = alone(x[:, -3:].contiguous()).float()
        error = float((together(x)[:, -_CLASSES:].float() - wanted).norm() / wanted.norm())
    if not error <= _SLACK * one.precision.tolerance:
        raise ValueError(f"the last of {one.clients} folded networks is off by {error:.1e} against itself alone")


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of one network, or the sum over folded ones: their rows of logits stand side by side."""
    logits = model(x).float().reshape(len(y), _CLASSES)  # a `cuda` network's samples may lie side by side
    return F.cross_entropy(logits, y) * (len(y) // len(x))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Call:
    def step() -> object:
        optimizer.zero_grad()
        loss = _loss(model, x, y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _peak_bytes(model: nn.Module, x: Tensor, y: Tensor, device: str) -> float | None:
    """Most memory of two steps of a copy, above parameters and input: gradients, momentum, activations, workspaces."""
    twin = copy.deepcopy(model)
    with fs.measure(device) as reading:
        step = _step(twin, torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9), x, y)
        step()
        step()
        del step
    return reading.peak_bytes.value


def _saved_bytes(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """What is held on the device between a forward and a backward pass: activations, as far as gradients need them."""
    before = torch.cuda.memory_allocated()
    loss = _loss(model, x, y)
    saved = torch.cuda.memory_allocated() - before
    del loss
    return float(saved)
