"""Whole training steps of ResNet-18: forward, loss, backward, SGD with momentum; time and memory."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.bench.cases import DenseLayer, at_densities
from fedsparse.bench.machine import computing_with
from fedsparse.bench.peers import SparseProp
from fedsparse.bench.report import Report, TextTable, Watch, milliseconds, provenance, times_faster
from fedsparse.bench.timing import Timing, interleave
from fedsparse.errors import BackendError, ConfigError
from fedsparse.experiment.environment import version
from fedsparse.measure import measure as measuring
from fedsparse.models import resnet18
from fedsparse.nn import densify, masks, prune_activations, sparsify

__all__ = ["DENSITIES", "NETWORKS", "QUICK", "TOLERANCES", "Contender", "StepRow", "StepSettings", "measure"]

DENSITIES = (0.2, 0.1, 0.05, 0.01)
ERK_DENSITY = 0.1
# Of the logits, and of the input gradient: a ReLU whose input rounds to the other side of 0 moves the gradient of
# torch's own network by thousandths, a wrong product by more than all of it.
TOLERANCES = (1e-4, 3e-2)
# The same under autocast, where many more ReLUs round to the other side.
HALF_TOLERANCES = (5e-2, 0.7)
DENSE, HALF = "torch dense", "torch bf16 autocast"
DTYPES = ("float32", "bfloat16")

# How a network of sparse layers can be run: from that network to the one that is timed.
NETWORKS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "fedsparse layers": lambda network: network,
    "fedsparse keep 0.3": lambda network: prune_activations(network, 0.3),
    "fedsparse keep 0.3 bf16": lambda network: prune_activations(network, 0.3, dtype=torch.bfloat16),
}


@dataclass(frozen=True)
class StepSettings:
    """What is measured, and how often.

    Attributes:
        densities: kept shares of the parameters.
        batch: pictures.
        rounds: steps of every network that are counted.
        threads: None leaves torch's number.
        isa: instruction set of the cpu kernels; None takes the best.
        dtype: of activations: "float32", or "bfloat16" to run every sparse network of fedsparse under autocast as well.

    Raises:
        ConfigError: another dtype.
    """

    densities: Sequence[float] = DENSITIES
    batch: int = 64
    rounds: int = 7
    threads: int | None = None
    isa: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r} of activations; expected one of {', '.join(DTYPES)}")


# A look at whether everything works: seconds, and figures that say little.
QUICK = StepSettings(densities=(0.1,), batch=8, rounds=2)


@dataclass(frozen=True)
class Contender:
    """One network to be trained.

    Attributes:
        engine: who computes; ratios are to the best contender of each engine.
        detail: what tells it from the engine's others.
        model: the network.
        x: pictures, in the layout it likes.
        half: whether torch's autocast to bfloat16 is on.
    """

    engine: str
    detail: str
    model: nn.Module
    x: Tensor
    half: bool = False

    @property
    def name(self) -> str:
        """Engine and detail."""
        return f"{self.engine} {self.detail}".strip()


@dataclass(frozen=True)
class StepRow:
    """Time and memory of one network's step.

    Attributes:
        name: of the contender.
        seconds: of a step.
        ratios: best time of torch dense, and of each peer of the same masks, over this one's.
        peak_bytes: most memory of two steps of a fresh copy: network, gradients, momentum, activations, workspaces.
        peak_bytes_above: the same without parameters, buffers and input.
    """

    name: str
    seconds: Timing
    ratios: Mapping[str, float]
    peak_bytes: float | None
    peak_bytes_above: float | None

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def measure(settings: StepSettings, *, watch: Watch = lambda _: None) -> Report:
    """Times a step of every network.

    Raises:
        ConfigError: a setting out of range.
        BackendError: a sparse network of fedsparse computes a wrong answer, or the extension was not built.
    """
    at_densities((), settings.densities, batch=settings.batch)
    prop = SparseProp()
    reason = prop.available()
    with computing_with(threads=settings.threads, isa=settings.isa) as isa:
        torch.manual_seed(0)
        plain = resnet18()
        x, y = torch.randn(settings.batch, 3, 32, 32), torch.randint(10, (settings.batch,))
        contenders, remarks = _dense(plain, x), []
        for distribution, density in (*(("uniform", d) for d in settings.densities), ("erk", ERK_DENSITY)):
            watch(f"preparing {distribution} {density:g}")
            ways = (False, True) if settings.dtype == "bfloat16" else (False,)
            found, remark = _sparse(plain, x, distribution, density, prop if reason is None else None, ways)
            contenders += found
            remarks += remark
        watch(f"timing {len(contenders)} networks")
        times = interleave({one.name: train_step(one, y) for one in contenders}, rounds=settings.rounds)
        rows = []
        for one in contenders:
            rows.append(StepRow(one.name, times[one.name], _ratios(one, contenders, times), *peak_bytes(one, y)))
            watch(f"{one.name}: {milliseconds(times[one.name].median)} ms")
        origin = provenance(
            "wall clock, medians and quartiles of interleaved steps; memory at the C allocator; "
            "ratios are a peer's median over this one's",
            instruction_set=isa,
        )
    peers = [{"name": name, "version": version("torch"), "unavailable": None} for name in (DENSE, HALF)]
    peers.append({"name": prop.name, "version": version(prop.package), "unavailable": reason})
    numbers = [row.to_json() for row in rows]
    return Report("step", origin, asdict(settings), peers, numbers, remarks=remarks, tables=[_table(rows)])


# ---- networks
def _dense(plain: nn.Module, x: Tensor) -> list[Contender]:
    last, x_last = copy.deepcopy(plain), x.contiguous(memory_format=torch.channels_last)
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        Contender(DENSE, "", plain, x),
        Contender(DENSE, "channels_last", last, x_last),
        Contender(HALF, "", copy.deepcopy(plain), x, half=True),
        Contender(HALF, "channels_last", copy.deepcopy(last), x_last, half=True),
    ]


def _sparse(
    plain: nn.Module, x: Tensor, distribution: str, density: float, prop: SparseProp | None, ways: Sequence[bool]
) -> tuple[list[Contender], list[str]]:
    """The same masks in every engine that gives the dense network's answer, and which other is left out.

    Networks of fedsparse run in every one of `ways`: with autocast to bfloat16 or without.
    """
    detail = f"{distribution} {density:g}"
    sparse = sparsify(copy.deepcopy(plain), density, distribution=distribution)
    masked = densify(copy.deepcopy(sparse))
    contenders = [
        Contender(f"{name} autocast" if half else name, detail, run(copy.deepcopy(sparse)), x, half)
        for half in ways
        for name, run in NETWORKS.items()
    ]
    for one in contenders:
        if wrong := disagreement(one.model, masked, x, half=one.half):
            raise BackendError(f"{one.name} cannot be timed: {wrong}")
    if prop is None:
        return contenders, []
    network = sparseprop_network(masked, list(masks(sparse)), x, prop)
    if wrong := disagreement(network, masked, x):
        return contenders, [f"{prop.name} {detail}: left out, {wrong}"]
    return [*contenders, Contender(prop.name, detail, network, x)], []


def disagreement(model: nn.Module, truth: nn.Module, x: Tensor, *, half: bool = False) -> str | None:
    """In which of logits and input gradient a network is wrong, and by how much; None where it is not.

    With `half`, the network runs under autocast to bfloat16; the truth never does.
    """
    tolerances = HALF_TOLERANCES if half else TOLERANCES
    answers = zip(
        ("logits", "input gradient"), _answer(model, x, half), _answer(truth, x, False), tolerances, strict=True
    )
    for what, got, wanted, tolerance in answers:
        error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))
        if not error <= tolerance:
            return f"wrong {what}: relative error {error:.1e} against torch dense (at most {tolerance:g})"
    return None


def _answer(model: nn.Module, x: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """Logits and gradient of the input, by a copy: batch norm counts what it sees."""
    x = x.detach().clone().requires_grad_()
    with _precision(half):
        y = copy.deepcopy(model)(x)
        loss = F.cross_entropy(y, torch.zeros(len(y), dtype=torch.int64))
    (grad_x,) = torch.autograd.grad(loss, x)
    return y.detach(), grad_x


def sparseprop_network(masked: nn.Module, names: Sequence[str], x: Tensor, prop: SparseProp) -> nn.Module:
    """`masked` with SparseProp's modules for the weights `names`, for each the faster of its ways on `x`."""
    network = copy.deepcopy(masked)
    paths = [name.removesuffix(".weight") for name in names]
    for path, shape in _input_shapes(network, paths, x).items():
        dense: Any = network.get_submodule(path)
        parent, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(parent), leaf, _faster(prop, dense, torch.randn(shape)))
    return network


def _input_shapes(network: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: shapes.update({path: inputs[0].shape})

    handles = [network.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
    with torch.no_grad():
        copy.deepcopy(network)(x)
    for handle in handles:
        handle.remove()
    return shapes


def _faster(prop: SparseProp, dense: DenseLayer, x: Tensor) -> nn.Module:
    """Of SparseProp's modules for a layer, the one that takes less time."""
    layers = prop.layers(dense)
    x.requires_grad_()
    with torch.no_grad():
        grad = torch.ones(dense(x).shape)

    def run(layer: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)

    times = interleave({name: run(layer) for name, layer in layers.items()}, rounds=2, warmup=1)
    fastest: nn.Module = layers[min(times, key=lambda name: times[name].median)]
    return fastest


# ---- time and memory
def train_step(contender: Contender, y: Tensor, model: nn.Module | None = None) -> Callable[[], object]:
    """One optimiser step on a fixed batch, by the contender's network or by `model` in its place."""
    model = contender.model if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run() -> object:
        optimizer.zero_grad()
        with _precision(contender.half):
            loss = F.cross_entropy(model(contender.x), y)
        loss.backward()
        return optimizer.step()

    return run


def _precision(half: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=half)


def peak_bytes(contender: Contender, y: Tensor) -> tuple[float | None, float | None]:
    """Most memory of two steps of a fresh copy, with the copy itself and without; the input counts in neither."""
    with measuring() as whole:
        model = copy.deepcopy(contender.model)
        with measuring() as above:
            run = train_step(contender, y, model)
            run()
            run()
            del run
        del model
    return whole.peak_bytes.value, above.peak_bytes.value


def _ratios(one: Contender, contenders: Sequence[Contender], times: Mapping[str, Timing]) -> dict[str, float]:
    """To the best dense step in either precision, and to other engines with the same masks."""
    best: dict[str, float] = {}
    for other in contenders:
        if other.engine != one.engine and (other.engine in (DENSE, HALF) or other.detail == one.detail):
            median = times[other.name].median
            best[other.engine] = min(median, best.get(other.engine, median))
    return {engine: median / times[one.name].median for engine, median in best.items()}


def _table(rows: Sequence[StepRow]) -> TextTable:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    headings = ["network", "ms", *(f"vs {peer}" for peer in peers), "peak MB", "above parameters"]
    cells = [
        [
            row.name,
            milliseconds(row.seconds.median),
            *(times_faster(row.ratios.get(peer)) for peer in peers),
            _megabytes(row.peak_bytes),
            _megabytes(row.peak_bytes_above),
        ]
        for row in rows
    ]
    return TextTable("one training step of ResNet-18 on 32x32 pictures, times faster", headings, cells)


def _megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f}"
