"""Networks in bfloat16, by conversion or autocast, keep their activations in the layout and half the memory."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs
from fedsparse import _native
from fedsparse.blocked import Blocked
from fedsparse.errors import ShapeError
from fedsparse.nn import prune_activations

HALF = torch.bfloat16
WAYS = ("converted", "autocast")


class Smooth(nn.Module):
    """Norms, sums, pooling, a projection; no gate that rounding could flip."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), norm(12)
        self.conv1, self.norm1 = nn.Conv2d(12, 20, 3, 2, 1, bias=False), norm(20)
        self.project, self.norm2 = nn.Conv2d(12, 20, 1, 2, bias=False), norm(20)
        self.grouped = nn.Conv2d(20, 10, 3, padding=2, dilation=2, groups=5)
        self.fc = nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = self.norm1(self.conv1(x)) + self.norm2(self.project(x))
        x = F.gelu(self.grouped(F.avg_pool2d(x, 3, 1, 1)))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Smooth(nn.BatchNorm2d),
    "batch norm without weights": lambda: Smooth(lambda n: nn.BatchNorm2d(n, affine=False)),
    "group norm": lambda: Smooth(lambda n: nn.GroupNorm(4, n)),
    "no norm": lambda: Smooth(lambda _: nn.Identity()),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(300, 40), nn.SiLU(), nn.Linear(40, 9)),
}


def sparse(network: nn.Module, density: float = 0.4) -> nn.Module:
    model = fs.sparsify(network, density, distribution="uniform", exclude="none")
    fs.set_backend(model, "cpu")  # no way out
    return model


def built(name: str) -> nn.Module:
    torch.manual_seed(3)
    return sparse(NETWORKS[name]())


def outcome(model: nn.Module, x: Tensor, way: str = "") -> dict[str, Tensor]:
    """Output, gradients and running statistics of one pass of a copy."""
    model = copy.deepcopy(model)
    if way == "converted":
        model, x = model.to(HALF), x.to(HALF)
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", HALF, enabled=way == "autocast"):
        y = model(x)
    assert type(y) is Tensor
    (y.double() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    assert x.grad is not None
    grads = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    stats = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return {"output": y.detach(), "grad x": x.grad, **grads, **stats}


def distance(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-6))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [7, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_near_float32(name: str, batch: int, way: str) -> None:
    """float32 networks are compared with float64 in test_networks.py."""
    model = built(name)
    x = torch.randn(batch, 3, 10, 10, generator=torch.Generator().manual_seed(batch)).to(HALF).float()
    if way == "converted":
        model.to(HALF).float()  # weights that both have
    truth, found = outcome(model, x), outcome(model, x, way)
    assert found["output"].dtype == HALF
    for key, wanted in truth.items():
        assert found[key].dtype == (HALF if way == "converted" or key == "output" else torch.float32), key
        if name.startswith("batch norm") and key == "grad stem.bias":
            continue  # a bias in front of a batch norm changes nothing: its gradient is rounding alone
        # Gradients of biases are sums over images and pixels that nearly cancel here.
        tolerance = 5e-2 if key.endswith("bias") else 1.5e-2
        assert distance(found[key], wanted) < tolerance, (key, distance(found[key], wanted))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_leaves_the_layout(way: str) -> None:
    model = built("batch norm")
    x = torch.randn(16, 3, 10, 10)
    if way == "converted":
        model, x = model.to(HALF), x.to(HALF)
    seen = []
    for layer in model.modules():
        layer.register_forward_hook(lambda _m, _i, y: seen.append((isinstance(y, Blocked), y.dtype)))
    with torch.autocast("cpu", HALF, enabled=way == "autocast"):
        model(x)
    assert seen[:-1] == [(True, HALF)] * (len(seen) - 1)
    assert seen[-1] == (False, HALF)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = fs.sparsify(fs.models.resnet18(width=16), 0.2, distribution="uniform", exclude="none")
    fs.set_backend(model, "cpu")
    return model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,))


def trained(model: nn.Module, x: Tensor, y: Tensor, way: str, steps: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """A copy after some steps of SGD, its first logits and its input's gradient."""
    model, x = copy.deepcopy(model), x.clone()
    if way == "converted":
        model, x = model.to(HALF), x.to(HALF)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x.requires_grad_()
    logits = grad = torch.zeros(())
    for step in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", HALF, enabled=way == "autocast"):
            out = model(x)
            loss = F.cross_entropy(out.float(), y)
        loss.backward()
        optimizer.step()
        if step == 0:
            assert x.grad is not None
            logits, grad = out.detach(), x.grad.clone()
    return model, logits, grad


@pytest.mark.parametrize("way", WAYS)
def test_resnet_is_as_near_as_torch_in_bfloat16(resnet: tuple[nn.Module, Tensor, Tensor], way: str) -> None:
    """Rounding flips ReLUs, which moves gradients by more than rounding: dense torch in bfloat16 sets the measure."""
    model, x, y = resnet
    dense = fs.densify(copy.deepcopy(model))
    _, exact, exact_grad = trained(dense, x, y, "")
    _, theirs, their_grad = trained(dense, x, y, way)
    _, ours, our_grad = trained(model, x, y, way)
    assert ours.dtype == HALF
    assert distance(ours, exact) < min(1.2 * distance(theirs, exact), 2e-2)
    assert distance(our_grad, exact_grad) < 1.1 * distance(their_grad, exact_grad)


@pytest.mark.parametrize("way", WAYS)
def test_resnet_trains(resnet: tuple[nn.Module, Tensor, Tensor], way: str) -> None:
    model, x, y = resnet
    model, _, _ = trained(model, x, y, way, steps=8)
    assert all(p.isfinite().all() for p in model.parameters())
    model.train()
    with torch.no_grad(), torch.autocast("cpu", HALF, enabled=way == "autocast"):
        found = F.cross_entropy(model(x.to(HALF) if way == "converted" else x).float(), y)
    assert float(found) < 0.7 * 2.3  # of guessing among ten classes


@pytest.mark.skipif(not _native.extension().memory_counted(), reason="the allocator cannot be counted on this system")
def test_half_the_memory(resnet: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = resnet

    def peak(model: nn.Module, x: Tensor, cast: bool) -> float:
        for _ in range(2):  # gradients are there the second time
            with fs.measure() as cost, torch.autocast("cpu", HALF, enabled=cast):
                loss = F.cross_entropy(model(x).float(), y)
                loss.backward()
            del loss
        assert cost.peak_bytes.value is not None
        return cost.peak_bytes.value

    whole = peak(copy.deepcopy(model), x, False)
    assert peak(copy.deepcopy(model).to(HALF), x.to(HALF), False) < 0.6 * whole
    assert peak(copy.deepcopy(model), x, True) < 0.6 * whole


@pytest.mark.parametrize("dtype", [None, HALF])
@pytest.mark.parametrize("way", WAYS)
def test_pruned_activations(way: str, dtype: torch.dtype | None) -> None:
    """All kept: the values' gradients are those of the whole input."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = sparse(nn.Sequential(*body, nn.Conv2d(8, 6, 3)))
    x = torch.randn(33, 3, 9, 9)
    whole = outcome(model, x, way)
    kept = outcome(prune_activations(model, 1.0, dtype=dtype), x, way)
    for key, wanted in whole.items():
        assert torch.equal(kept[key], wanted), key
    some = outcome(prune_activations(model, 0.3, dtype=dtype), x, way)
    assert torch.equal(some["output"], whole["output"])
    assert not torch.equal(some["grad 5.values"], whole["grad 5.values"])


def test_mixed_activations_go_on_as_ordinary_tensors() -> None:
    """float32 and bfloat16 meet as they meet in torch."""

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", HALF):
                half = self.right(x)
            assert half.dtype == HALF
            return self.last(torch.cat([self.left(x), half], 1)[:, :3] + self.left(x) + half)

    torch.manual_seed(0)
    model = sparse(Meeting(), 0.6)
    x = torch.randn(7, 3, 6, 6)
    y = model(x)
    assert y.dtype == torch.float32
    assert distance(y.detach(), fs.densify(copy.deepcopy(model))(x).detach()) < 1e-2


def test_autocast_around_a_part_takes_what_the_rest_made() -> None:
    """Activations change their dtype inside the layout; gradients find the way back."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            with torch.autocast("cpu", HALF):
                return self.second(x).float()

    torch.manual_seed(0)
    model = sparse(Part(), 0.6)
    x = torch.randn(7, 3, 9, 9)
    truth = fs.densify(copy.deepcopy(model))
    first, wanted = model.first, truth.first
    assert isinstance(first, fs.nn.SparseConv2d)
    assert isinstance(wanted, nn.Conv2d)
    model(x).square().sum().backward()
    truth.double()(x.double()).square().sum().backward()
    assert first.values.grad is not None
    assert first.values.grad.dtype == torch.float32
    assert wanted.weight.grad is not None
    assert distance(first.values.grad, first.pattern.gather(wanted.weight.grad)) < 1e-2


def test_dtypes_that_disagree_are_refused_in_words() -> None:
    model = sparse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, bias=False)))
    model[1].to(HALF)
    with pytest.raises(ShapeError, match=r"input \(torch\.float32, cpu\), values \(torch\.bfloat16, cpu\)"):
        model(torch.randn(2, 3, 8, 8))
