"""Networks that keep their activations blocked and save the largest of them only."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import fedsparse as fs
from fedsparse import _native
from fedsparse.backends.choose import BACKENDS
from fedsparse.backends.cpu import CpuBackend
from fedsparse.nn import prune_activations

RULES = ("tile", "global")


class Block(nn.Module):
    """A strided residual block with a projection, and one with an identity."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(12, 20, 3, 2, 1, bias=False), nn.Conv2d(20, 20, 3, padding=1)
        self.project, self.conv3 = nn.Conv2d(12, 20, 1, 2, bias=False), nn.Conv2d(20, 20, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) if norm else nn.Identity() for n in (12, 20, 20, 20, 20)])
        self.fc = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        y = self.norms[2](self.conv2(F.relu(self.norms[1](self.conv1(x)))))
        x = F.relu(y + self.norms[3](self.project(x)))
        x = F.relu(self.norms[4](self.conv3(x)) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def perceptron() -> nn.Module:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(243, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 30))
    return flat.extend([nn.ReLU(), nn.Linear(30, 8)])


def mixed() -> nn.Module:
    first = [nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 12, 3, groups=2), nn.GELU()]
    last = [nn.Conv2d(12, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*first, *last)


NETWORKS = {
    "batch norm": lambda: Block(norm=True),
    "no norm": lambda: Block(norm=False),
    "perceptron": perceptron,
    "mixed": mixed,
}


def on_cpu_kernels(dense: nn.Module) -> nn.Module:
    model = fs.sparsify(dense, 0.5, distribution="uniform", exclude="none")
    fs.set_backend(model, "cpu")
    return model


def built(name: str) -> nn.Module:
    torch.manual_seed(5)
    return on_cpu_kernels(NETWORKS[name]())


def pictures(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


class PrunedDense(nn.Module):
    """A dense layer with the gradients of scaled activation pruning, written down from their definition."""

    def __init__(self, dense: nn.Module, share: float, rule: str) -> None:
        super().__init__()
        self.dense, self.share, self.rule = dense, share, rule

    def forward(self, x: Tensor) -> Tensor:
        tiles = x.detach().reshape(1 if self.rule == "global" else len(x), -1)
        order = torch.sort(-tiles.abs(), dim=1, stable=True).indices[:, : round(self.share * tiles.shape[1])]
        kept = torch.where(torch.zeros_like(tiles, dtype=torch.bool).scatter_(1, order, True), tiles, 0.0)
        exact = functional_call(self.dense, {"weight": self.dense.weight.detach()}, (x,))
        of_weight = functional_call(self.dense, {"bias": None}, (kept.view(x.shape),))
        return exact + of_weight - of_weight.detach()


def replaced(model: nn.Module, share: float, rule: str) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PrunedDense(module, share, rule))
    return model


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    assert x.grad is not None
    found = {name.replace(".dense.", "."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **found}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [1, 7, 33])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("isa", list(_native.instruction_sets()))
def test_gradients_equal_those_of_dense_layers_in_float64(
    isa: str, name: str, batch: int, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if batch == 1 and name == "perceptron":
        batch = 2  # statistics of one number
    monkeypatch.setitem(BACKENDS, "cpu", CpuBackend(isa))
    model, x = built(name), pictures(batch)
    exact = gradients(replaced(fs.densify(copy.deepcopy(model)).double(), 0.3, rule), x.double())
    found = gradients(prune_activations(model, 0.3, rule=rule), x)
    layers = {f"{key.removesuffix('.weight')}.values": layer for key, layer in fs.nn.sparse_layers(model).items()}
    for key, value in found.items():
        layer = layers.get(key)
        truth = exact[key] if layer is None else layer.pattern.gather(exact[key.replace("values", "weight")])
        error, size = (value.double() - truth).norm(), truth.norm()
        assert error < (1e-4 * size if size > 1e-9 else 1e-3), (key, float(error), float(size))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_all_changes_no_bit(name: str, rule: str) -> None:
    model, x = built(name), pictures(20)
    whole = gradients(copy.deepcopy(model), x)
    exact = gradients(prune_activations(model, 1.0, rule=rule), x)
    for key, value in whole.items():
        assert torch.equal(exact[key], value), key


@pytest.mark.parametrize("name", NETWORKS)
def test_only_gradients_of_weights_change(name: str) -> None:
    model, x = built(name), pictures(20)
    whole = gradients(copy.deepcopy(model), x)
    pruned = gradients(prune_activations(model, 0.1), x)
    for key, value in whole.items():
        assert torch.equal(pruned[key], value) == ("values" not in key), key


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_bfloat16_is_near(name: str, share: float) -> None:
    model, x = built(name), pictures(33)
    whole = gradients(prune_activations(copy.deepcopy(model), share), x)
    half = gradients(prune_activations(model, share, dtype=torch.bfloat16), x)
    assert torch.equal(half["y"], whole["y"])
    has_norm = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    for key, value in whole.items():
        if "values" not in key and not has_norm:
            assert torch.equal(half[key], value), key
        # Near the cut, rounding takes one element for another.
        tolerance = 0.02 if share == 1.0 else 0.1
        assert (half[key] - value).norm() < tolerance * value.norm() + 5e-3, key


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of what a forward pass saves beside parameters, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model(x)
    del y
    return sum(size for pointer, size in storages.items() if pointer not in own)


def packed_bytes(elements: int, count: int, size: int) -> int:
    chunks = -(-elements // 512)
    return chunks * 64 + 4 * (chunks + 1) + size * (count + 16)


@pytest.mark.skipif(next(iter(_native.instruction_sets().values())) != 16, reason="counts lines of 16 images")
@pytest.mark.parametrize(("dtype", "size"), [(None, 4), (torch.bfloat16, 2)])
def test_a_chain_without_norms_saves_bits_and_kept_values(dtype: torch.dtype | None, size: int) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = on_cpu_kernels(chain)
    x = torch.randn(32, 3, 16, 16)
    images, middle = 32 * 3 * 256, 32 * 8 * 256
    assert saved_bytes(model, x) == 4 * (images + middle)
    prune_activations(model, 0.25, rule="tile", dtype=dtype)
    both = packed_bytes(images, images // 4, size) + packed_bytes(middle, middle // 4, size)
    assert saved_bytes(model, x) == both + middle // 8


@pytest.mark.skipif(next(iter(_native.instruction_sets().values())) != 16, reason="counts lines of 16 images")
@pytest.mark.parametrize(("dtype", "size"), [(None, 4), (torch.bfloat16, 2)])
def test_layers_behind_a_norm_share_what_it_holds(dtype: torch.dtype | None, size: int) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = on_cpu_kernels(chain)
    x = torch.randn(32, 3, 16, 16)
    images, middle = 32 * 3 * 256, 32 * 8 * 256
    prune_activations(model, 0.25, dtype=dtype)
    prune_activations(model[0], None)
    cuts, channels = 2 * 4 * 32, 8
    affine = 4 * 2 * channels if dtype is None else 0  # scale and shift; else the norm's own weight and bias
    assert saved_bytes(model, x) == 4 * images + size * middle + cuts + affine
    prune_activations(model[3], 1.0, dtype=dtype)
    assert saved_bytes(model, x) == 4 * images + size * middle + affine


def test_readers_of_one_tensor_share_what_is_kept() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.left(x) + (self.right(x) if self.both else 0)

    torch.manual_seed(0)
    model = on_cpu_kernels(Fork())
    prune_activations(model, 0.3)
    found = []
    for both in (False, True):
        model.both = both
        found.append(saved_bytes(model, pictures(16)))
    assert found[0] == found[1]


def test_evaluation_and_parts_of_a_model() -> None:
    model, x = built("no norm"), pictures(9)
    whole = gradients(copy.deepcopy(model), x)
    prune_activations(model, 0.1)
    evaluated = gradients(model.eval(), x)
    assert all(torch.equal(evaluated[key], whole[key]) for key in whole)
    prune_activations(model.train(), None)
    prune_activations(model.conv3, 0.1)
    part = gradients(model, x)
    assert [key for key in whole if not torch.equal(part[key], whole[key])] == ["conv3.values"]


def test_a_failure_inside_leaves_nothing_behind() -> None:
    model, x = built("no norm"), pictures(9)
    prune_activations(model, 0.1)
    with pytest.raises(fs.ShapeError):
        model(torch.randn(5, 4, 9, 9))
    other = built("no norm")
    assert saved_bytes(other, x) == saved_bytes(built("no norm"), x) > saved_bytes(model, x)
