"""Networks that keep their activations blocked compute what ordinary layers compute."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsparse as fs
from fedsparse.blocked import Blocked, keep_blocked, leave_blocked
from fedsparse.blocked import products as blocked_products
from fedsparse.errors import DoubleBackwardError


class Residual(nn.Module):
    """A stem, a strided block with a projection, and one with an identity, each sum under one ReLU."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), norm(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 20, 3, 2, 1, bias=False), norm(20)
        self.conv2, self.bn2 = nn.Conv2d(20, 20, 3, padding=1), norm(20)
        self.project, self.bn3 = nn.Conv2d(12, 20, 1, 2, bias=False), norm(20)
        self.conv3, self.bn4 = nn.Conv2d(20, 20, 3, padding=1, bias=False), norm(20)
        self.fc = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + self.bn3(self.project(x)))
        x = F.relu(self.bn4(self.conv3(x)) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), *layers)


class Inline(nn.Module):
    """In-place functions, a sum without ReLU, a channel join, arithmetic, and one function without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
        self.d = nn.Conv2d(24, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        a += b
        F.relu(c, inplace=True)
        joined = torch.cat([a, 2 * b - 1, c], 1)
        return self.d(joined).cumsum(1).mean((2, 3))


class Heads(nn.Module):
    """One tensor read by two layers, before and after its ReLU; the output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raw = self.norm(self.body(x))
        active = F.relu(raw)
        return {"left": self.left(raw) + self.left(active), "right": self.right(active)}


NETWORKS = {
    "residual": Residual,
    "residual group norm": lambda: Residual(lambda n: nn.GroupNorm(4, n)),  # type: ignore[arg-type]
    "max pool": lambda: chain(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 9, 3), nn.Flatten(), nn.Linear(9 * 9, 5)),
    "padded max pool": lambda: chain(nn.MaxPool2d(3, 2, 1), nn.Conv2d(10, 4, 3), nn.ReLU(inplace=True)),
    "average pool": lambda: chain(nn.AvgPool2d(3, 2, 1), nn.Conv2d(10, 4, 3)),
    "uncounted padding": lambda: chain(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Conv2d(10, 4, 3)),
    "uneven adaptive pool": lambda: chain(nn.AdaptiveAvgPool2d(4), nn.Conv2d(10, 4, 3)),
    "ceil mode": lambda: chain(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(10, 4, 3)),
    "smooth": lambda: chain(nn.GELU(), nn.Conv2d(10, 6, 3), nn.SiLU(), nn.Conv2d(6, 4, 3), nn.Tanh()),
    "norm without ReLU": lambda: chain(nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3)),
    "norm without weights": lambda: chain(nn.BatchNorm2d(10, affine=False), nn.ReLU(), nn.Conv2d(10, 4, 3)),
    "untracked norm": lambda: chain(nn.BatchNorm2d(10, track_running_stats=False), nn.ReLU(), nn.Conv2d(10, 4, 3)),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(363, 30), nn.ReLU(), nn.Linear(30, 8)),
    "groups": lambda: chain(nn.ReLU(), nn.Conv2d(10, 20, 3, groups=5), nn.ReLU(), nn.Conv2d(20, 20, 3, groups=20)),
    "reflection": lambda: chain(nn.ReLU(), nn.Conv2d(10, 4, 3, padding=1, padding_mode="reflect")),
    "in place": Inline,
    "heads": Heads,
}


def built(name: str, density: float = 0.4) -> nn.Module:
    torch.manual_seed(3)
    return fs.sparsify(NETWORKS[name](), density, distribution="uniform", exclude="none")


def total(output: Tensor | dict[str, Tensor]) -> Tensor:
    outputs = output.values() if isinstance(output, dict) else [output]
    return sum(((o * torch.linspace(-1, 1, o.numel()).view(o.shape).to(o)).sum() for o in outputs), torch.zeros(()))


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and running statistics of one pass."""
    x = x.clone().requires_grad_()
    output = model(x)
    model.zero_grad()
    total(output).backward()
    found = output if isinstance(output, dict) else {"output": output}
    assert all(type(t) is Tensor for t in found.values())
    assert x.grad is not None
    grads = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    stats = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return {**found, "grad x": x.grad, **grads, **stats}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch", [1, 7, 16, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_dense_network_in_float64(name: str, batch: int, training: bool) -> None:
    model = built(name).train(training)
    if batch == 1 and any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        model.eval()
    x = torch.randn(batch, 3, 11, 11, generator=torch.Generator().manual_seed(batch))
    exact = outcome(fs.densify(copy.deepcopy(model)).double(), x.double())
    fs.set_backend(model, "cpu")
    ours = outcome(keep_blocked(model), x)
    for key, value in ours.items():
        if "values" in key:
            continue  # laid out otherwise; see the next test
        error, size = (value.double() - exact[key]).norm(), exact[key].norm()
        # A bias before a norm has no gradient; what rounding leaves is small against sums over all pixels.
        assert error < (2e-5 * size if size > 1e-9 else 1e-3), (key, float(error), float(size))


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_ordinary_layers(name: str) -> None:
    model = built(name)
    fs.set_backend(model, "cpu")
    x = torch.randn(20, 3, 11, 11)
    ordinary = outcome(leave_blocked(copy.deepcopy(model)), x)
    ours = outcome(model, x)
    assert ordinary.keys() == ours.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, ordinary[key], rtol=2e-4, atol=2e-4)


def count_blocked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Conversions of activations while a network runs."""
    counts = {"enter": 0, "leave": 0}
    enter, leave = fs.blocked.functions.to_blocked, fs.blocked.functions.from_blocked
    monkeypatch.setattr(
        fs.blocked.functions, "to_blocked", lambda *a: counts.update(enter=counts["enter"] + 1) or enter(*a)
    )
    monkeypatch.setattr(
        fs.blocked.functions, "from_blocked", lambda *a: counts.update(leave=counts["leave"] + 1) or leave(*a)
    )
    return counts


def test_resnet_is_converted_once_at_each_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fs.sparsify(fs.models.resnet18(width=8), 0.2, distribution="uniform")
    counts = count_blocked(monkeypatch)
    logits = model(torch.randn(32, 3, 32, 32))
    assert counts == {"enter": 1, "leave": 1}
    logits.sum().backward()
    assert counts == {"enter": 2, "leave": 1}  # one gradient enters; the pictures want none


def test_inside_layers_exchange_blocked_tensors_and_outside_ordinary_ones() -> None:
    model = built("max pool")
    fs.set_backend(model, "cpu")
    seen: list[type] = []
    model[0].register_forward_hook(lambda _m, _a, output: seen.append(type(output)))
    x = torch.randn(5, 3, 11, 11)
    assert type(model(x)) is Tensor
    assert type(model[0](x)) is Tensor
    assert seen == [Blocked, Tensor]


def test_a_failure_inside_leaves_nothing_behind() -> None:
    model = built("max pool")
    with pytest.raises(fs.ShapeError):
        model(torch.randn(5, 4, 11, 11))
    assert type(model[0](torch.randn(5, 3, 11, 11))) is Tensor


def test_copies_pickles_and_densified_models() -> None:
    model = built("residual").eval()
    x = torch.randn(4, 3, 11, 11)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), keep_blocked(copy.deepcopy(model))):
        assert torch.equal(other(x), expected)
        assert len(other._forward_pre_hooks) == 1
    dense = fs.densify(model)
    assert not dense._forward_pre_hooks
    assert not dense._forward_hooks
    torch.testing.assert_close(dense(x), expected, rtol=1e-4, atol=1e-5)


def test_functions_without_a_rule_turn_a_tensor_ordinary_for_good() -> None:
    model = built("smooth")
    fs.set_backend(model, "cpu")
    seen: dict[str, Tensor] = {}

    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        assert output.shape == (5, 10, 11, 11)
        assert output.requires_grad
        assert isinstance(output, Blocked)
        output.retain_grad()
        seen["plain"] = output.plain()
        assert output.node is None

    model[0].register_forward_hook(hook)
    model(torch.randn(5, 3, 11, 11)).sum().backward()
    assert seen["plain"].grad is not None


def test_plans_see_ordinary_tensors() -> None:
    model = built("max pool")
    assert len(fs.plan(model, torch.randn(6, 3, 11, 11)).layers) == 3


def test_second_derivatives_are_refused_in_words() -> None:
    model = built("max pool")
    fs.set_backend(model, "cpu")
    x = torch.randn(4, 3, 11, 11, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(DoubleBackwardError, match="densify"):
        grad.sum().backward()


def test_float16_and_other_backends_take_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("residual")
    fs.set_backend(model, "cpu")
    x = torch.randn(4, 3, 11, 11)
    counts = count_blocked(monkeypatch)
    with torch.autocast("cpu", torch.float16):
        model(x)
    fs.set_backend(model, "reference")
    model(x)
    assert counts == {"enter": 0, "leave": 0}


def test_threads_of_python_do_not_see_each_other() -> None:
    model = built("residual").eval()
    fs.set_backend(model, "cpu")
    xs = [torch.randn(9, 3, 11, 11) for _ in range(4)]
    alone = [model(x) for x in xs]
    found: list[Tensor | None] = [None] * len(xs)

    def run(i: int) -> None:
        found[i] = model(xs[i])

    workers = [threading.Thread(target=run, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(found, alone, strict=True):
        assert one is not None
        assert torch.equal(one, other)


def test_product_refuses_what_does_not_fit() -> None:
    model = built("perceptron")
    fs.set_backend(model, "cpu")
    assert (
        blocked_products.blocked_product(torch.zeros(2, 363), model[1].values, None, model[1].pattern, (), "cpu")
        is None
    )
    with pytest.raises(fs.ShapeError, match="363"):
        model(torch.randn(2, 3, 5, 5))
