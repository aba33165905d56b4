"""Layers whose gradients are searched stay in the layout, and so does the network around them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs
from fedsparse import _native
from fedsparse.blocked import Blocked, leave_blocked
from fedsparse.blocked.trace import traced
from fedsparse.errors import PatternError
from fedsparse.nn import dense_gradients, prune_activations, sparse_layers, without_batch_norm
from fedsparse.nn.layer import Use
from fedsparse.ops.held import Catch

HALF = torch.bfloat16


class Residual(nn.Module):
    """Norms, a strided block with a projection, groups, a linear layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 20, 3, 2, 1, bias=False), nn.BatchNorm2d(20)
        self.conv2, self.bn2 = nn.Conv2d(20, 20, 3, padding=1, groups=2), nn.BatchNorm2d(20)
        self.project, self.bn3 = nn.Conv2d(12, 20, 1, 2, bias=False), nn.BatchNorm2d(20)
        self.hidden, self.fc = nn.Linear(20, 20), nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + self.bn3(self.project(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(F.relu(self.hidden(F.gelu(self.hidden(x)))))


def chain() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=(2, 1)), nn.ReLU(inplace=True)]
    return nn.Sequential(*body, nn.MaxPool2d(2), nn.Conv2d(12, 6, (1, 3), 2), nn.Flatten(), nn.Linear(18, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "norm free": lambda: without_batch_norm(Residual()),
    "chain": chain,
}
PRUNINGS = {
    "whole": lambda model: model,
    "tile": lambda model: prune_activations(model, 0.3),
    "global": lambda model: prune_activations(model, 0.3, rule="global"),
    "bfloat16": lambda model: prune_activations(model, 0.3, dtype=HALF),
}


def built(name: str, pruning: str = "whole", granularity: str = "element") -> nn.Module:
    torch.manual_seed(3)
    model = NETWORKS[name]()
    fs.sparsify(model, 0.4, distribution="uniform", exclude="none", granularity=granularity)
    fs.set_backend(model, "cpu")
    return PRUNINGS[pruning](model)


def pictures(batch: int = 20) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def loss_of(y: Tensor) -> Tensor:
    return (y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum()


@contextmanager
def all_searched(model: nn.Module) -> Iterator[dict[str, fs.topk_pruned_gradient]]:
    """Probes for every pruned position of every layer."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(fs.topk_pruned_gradient(layer, layer.pattern.size))
            for name, layer in sparse_layers(model).items()
        }


def searched(model: nn.Module, x: Tensor, cast: bool = False) -> dict[str, fs.topk_pruned_gradient]:
    with all_searched(model) as probes:
        with torch.autocast("cpu", HALF, enabled=cast):
            y = model(x)
        loss_of(y).backward()
    return probes


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return bool((found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm() + 1e-4)


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("batch", [7, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_search_finds_what_it_finds_in_ordinary_layers(name: str, batch: int, pruning: str) -> None:
    """It sees whole inputs, pruned ones too, so the truth is of a model that prunes nothing."""
    model, truth = built(name, pruning), leave_blocked(built(name))
    fs.set_backend(truth, "reference")
    x = pictures(batch)
    found, wanted = searched(model, x), searched(truth, x)
    # A norm that holds bfloat16 gives its ReLU's readers, and the layers before it, that accuracy.
    tolerance = 2e-2 if pruning == "bfloat16" and name == "residual" else 2e-4
    for key, probe in found.items():
        layer = sparse_layers(model)[key]
        assert probe.gradients.dtype == torch.float32
        dense = torch.zeros(layer.pattern.size).index_copy_(0, probe.indices, probe.gradients)
        other = torch.zeros(layer.pattern.size).index_copy_(0, wanted[key].indices, wanted[key].gradients)
        assert close(dense, other, tolerance), key
        pruned = (~layer.mask).view(-1).nonzero().squeeze(1)
        order = torch.sort(dense[pruned].abs(), descending=True, stable=True).indices
        assert torch.equal(probe.indices, pruned[order]), key


@pytest.mark.parametrize("granularity", ["vector:3", "block:4"])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_units_are_found_without_leaving_the_layout(name: str, granularity: str) -> None:
    model, truth = built(name, granularity=granularity), leave_blocked(built(name, granularity=granularity))
    fs.set_backend(truth, "reference")
    x = pictures(33)
    found, wanted = searched(model, x), searched(truth, x)
    for key, probe in found.items():
        layer = sparse_layers(model)[key]
        tiling = layer.granularity.tiling(layer.pattern.shape)
        dense = torch.zeros(layer.pattern.size).index_copy_(0, probe.indices, probe.gradients)
        other = torch.zeros(layer.pattern.size).index_copy_(0, wanted[key].indices, wanted[key].gradients)
        assert close(dense, other, 2e-4), key
        scores = tiling.spread(tiling.sums(dense.double().square()) / tiling.sizes())
        pruned = (~layer.mask).view(-1).nonzero().squeeze(1)
        order = torch.sort(scores[pruned], descending=True, stable=True).indices
        unit = tiling.of(probe.indices)
        assert torch.equal(probe.indices.sort().values, pruned), key
        assert torch.equal(scores[probe.indices], scores[pruned[order]]), key
        assert bool((probe.indices[1:] > probe.indices[:-1])[unit[1:] == unit[:-1]].all()), key
        assert len(unit.unique_consecutive()) == len(unit.unique()), key


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_step_keeps_every_bit(name: str, pruning: str, cast: bool) -> None:
    model, x = built(name, pruning), pictures()
    twin = copy.deepcopy(model)
    searched(model, x, cast)
    with torch.autocast("cpu", HALF, enabled=cast):
        y = twin(x)
    loss_of(y).backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad), key


@pytest.mark.parametrize("pruning", ["whole", "tile"])
@pytest.mark.parametrize("name", ["norm free", "chain"])
def test_dense_gradients_are_those_of_ordinary_layers(name: str, pruning: str) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for way, model in (("blocked", built(name, pruning)), ("ordinary", leave_blocked(built(name)))):
        caught = found.setdefault(way, {})
        once = {key: layer for key, layer in sparse_layers(model).items() if "hidden" not in key}
        with dense_gradients(once, caught.__setitem__):
            loss_of(model(pictures())).backward()
    assert found["blocked"].keys() == found["ordinary"].keys()
    for key, gradient in found["blocked"].items():
        assert type(gradient) is Tensor
        assert close(gradient, found["ordinary"][key], 2e-4), key


def test_units_of_several_weights_are_found_as_in_ordinary_layers() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model = fs.sparsify(dense, 0.5, distribution="uniform", exclude="none", granularity="channel")
    fs.set_backend(model, "cpu")
    x = torch.randn(9, 4, 7, 7)
    found, wanted = searched(model, x), searched(leave_blocked(copy.deepcopy(model)), x)
    for key, probe in found.items():
        assert torch.equal(probe.indices, wanted[key].indices)
        torch.testing.assert_close(probe.gradients, wanted[key].gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["norm free", "chain"])
def test_under_autocast_all_that_is_found_fits_together(name: str) -> None:
    """Whatever rounding makes of the activations: of one pass, search, dense and kept gradients are the same ones."""
    model, x = built(name), pictures(33)
    dense: dict[str, Tensor] = {}
    once = {key: layer for key, layer in sparse_layers(model).items() if "hidden" not in key}
    with dense_gradients(once, dense.__setitem__):
        with torch.autocast("cpu", HALF):
            y = model(x)
        loss_of(y).backward()
    probes = searched(copy.deepcopy(model), x, cast=True)
    for key, layer in once.items():
        assert dense[key].dtype == probes[key].gradients.dtype == torch.float32
        pruned = dense[key].view(-1)[probes[key].indices]
        assert close(probes[key].gradients, pruned, 1e-3), key
        if not isinstance(layer, fs.nn.SparseNormalisedConv2d):
            assert layer.values.grad is not None
            assert close(layer.pattern.gather(dense[key]), layer.values.grad, 1e-3), key
        magnitudes = probes[key].gradients.abs()
        assert bool((magnitudes.diff() <= 0).all()), key


@pytest.mark.parametrize("name", ["residual", "chain"])
def test_nothing_leaves_the_layout(name: str) -> None:
    model = built(name)
    with traced(model) as alone:
        model(pictures())
    with all_searched(model):
        with traced(model) as watched:
            y = model(pictures())
        y.sum().backward()
    assert watched.conversions == alone.conversions
    assert sum(conversion.enters for conversion in watched.conversions) == 1


def test_what_is_caught_has_the_layout_and_is_let_go() -> None:
    model, x = built("chain"), pictures()
    layer = sparse_layers(model)["2.weight"]
    seen: list[tuple[object, ...]] = []

    def catch(grad: Tensor, x: Tensor) -> None:
        assert isinstance(grad, Blocked)
        assert isinstance(x, Blocked)
        seen.append((tuple(grad.shape), tuple(x.shape), float(x.min())))

    def watch(use: Use) -> Catch | None:
        seen.append(use.case.input)
        return catch if use.recorded else None

    layer.watcher = watch
    model(x).sum().backward()
    assert seen == [(20, 8, 8, 8), ((20, 12, 10, 8), (20, 8, 8, 8), 0.0)]
    with torch.no_grad():
        model(x)
    assert seen[2:] == [(20, 8, 8, 8)]
    assert not any(probe._caught for probe in searched(model, x).values())


def test_misuse_inside_a_network() -> None:
    model, x = built("chain"), pictures()
    layer = sparse_layers(model)["2.weight"]
    unrecorded = pytest.raises(PatternError, match="no gradient is being recorded")
    with unrecorded, fs.topk_pruned_gradient(layer, 1), torch.no_grad():
        model(x)
    with pytest.raises(PatternError, match="convolution ran twice"), fs.topk_pruned_gradient(layer, 1):
        (model(x) + model(x)).sum().backward()
    with pytest.raises(PatternError, match="no gradient reached"), fs.topk_pruned_gradient(layer, 1):
        model(x)
    last = sparse_layers(model)["7.weight"]
    with fs.topk_pruned_gradient(last, 1):
        model(x).sum().backward()
        with pytest.raises(PatternError, match="ran again after backward"):
            model(x)
    assert layer.watcher is last.watcher is None


@pytest.mark.skipif(not _native.extension().memory_counted(), reason="the allocator cannot be counted on this system")
@pytest.mark.parametrize("pruning", ["whole", "global"])
@pytest.mark.parametrize("normed", [True, False], ids=["batch norm", "norm free"])
def test_an_adjusting_step_peaks_near_a_training_step(normed: bool, pruning: str) -> None:
    torch.manual_seed(0)
    plain = fs.models.resnet18(width=16)
    model = fs.sparsify(plain if normed else without_batch_norm(plain), 0.1)
    fs.set_backend(model, "cpu")
    PRUNINGS[pruning](model)
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))

    def peak(model: nn.Module, search: bool) -> float:
        for _ in range(2):  # gradients are there the second time
            with ExitStack() as stack:
                cost = stack.enter_context(fs.measure())
                for layer in sparse_layers(model).values() if search else ():
                    stack.enter_context(fs.topk_pruned_gradient(layer, layer.nnz // 5))
                F.cross_entropy(model(x), y).backward()
        assert cost.peak_bytes.value is not None
        return cost.peak_bytes.value

    # One layer's gradient and input at a time; where all inputs are pruned, also what the search must see of them.
    training, adjusting, ordinary = peak(model, False), peak(model, True), peak(leave_blocked(model), True)
    assert adjusting < (1.1 if pruning == "whole" else 1.3) * training
    assert adjusting < 0.9 * ordinary
