"""The plan names every layer, who computes it and why, and where activations change their layout."""

import copy

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.blocked import leave_blocked
from fedsparse.errors import ConfigError
from fedsparse.nn import sparse_layers


class Sorted(nn.Module):
    def forward(self, x):
        return torch.sort(x, 1).values


def convs(*middle, density=0.2):
    """Three convolutions, the last two with 36 x 16 weights or 324 an output; `middle` follows the first."""
    model = nn.Sequential(
        nn.Conv2d(3, 36, 3, padding=1), *middle, nn.Conv2d(36, 36, 3, padding=1), nn.ReLU(), nn.Conv2d(36, 4, 3)
    )
    return fs.sparsify(model, density, distribution="uniform", exclude="none")


@pytest.fixture
def pictures(generator):
    return torch.randn(16, 3, 6, 6, generator=generator)


def ways(table):
    return [("enters" if c.enters else "leaves", c.module) for c in table.conversions]


def test_plan_of_a_model(net, generator):
    model = fs.sparsify(net(), 0.3, exclude="none")
    fs.set_masks(model, {"hidden.weight": torch.ones(16, 32, dtype=torch.bool)})
    model.out.set_backend("reference")
    x = torch.randn(16, 2, 6, 6, generator=generator)
    table = fs.plan(model.eval(), x, repeats=1)
    layers = sparse_layers(model)
    assert [row.name for row in table.layers] == list(layers)
    for row in table.layers:
        layer = layers[row.name]
        assert (row.shape, row.density) == (layer.pattern.shape, layer.density)
        assert row.bytes_sparse == 4 * layer.nnz + layer.pattern.nbytes
        assert row.bytes_dense == 4 * layer.pattern.size
        assert row.ms_sparse > 0
        assert row.ms_dense > 0
    by_name = {row.name: row for row in table.layers}
    words = "density 1.00 is above break-even, 0.25 for a batch of 16"
    assert by_name["hidden.weight"].backend == "masked"
    assert by_name["hidden.weight"].reasons == {"cpu": words, "masked": "chosen"}
    assert by_name["body.0.weight"].backend == "cpu"
    assert by_name["body.0.weight"].reasons == {"cpu": "chosen", "masked": "not needed"}
    assert by_name["out.weight"].backend == "reference"
    assert by_name["out.weight"].reasons == {"reference": "chosen by set_backend"}
    assert [row.blocked for row in table.layers] == [True, True, False, False]
    assert [row.why for row in table.layers] == ["", "", words, "chosen by set_backend"]
    assert ways(table) == [("enters", "conv"), ("leaves", "hidden")]
    lines = str(table).splitlines()
    assert lines[0].startswith("layer")
    assert "6x2x3x3" in lines[1]
    assert lines[3].endswith(words)
    assert lines[1 + len(layers) :] == [
        "activations in the layout of the cpu kernels:",
        "  enters at conv (16x2x6x6)",
        f"  leaves at hidden (16x32): layer computed by masked: {words}",
    ]


def test_nothing_to_plan(net):
    with pytest.raises(ConfigError, match="no sparse layer ran on the example"):
        fs.plan(net(), torch.ones(1, 2, 6, 6))


@pytest.mark.parametrize("size", [2, 3], ids=["runs", "fails"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_looking_changes_nothing(net, training, size):
    model = nn.Sequential(fs.sparsify(net(), 0.3, exclude="none"), nn.Dropout(0.5)).train(training)

    def watcher(_use):
        raise AssertionError("a plan is no run to watch")

    model[0].out.watcher = watcher
    buffers, state, drawn = list(model.buffers()), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
    if size == 3:
        with pytest.raises(ValueError, match="does not fit a weight"):
            fs.plan(model, torch.ones(2, size, 6, 6))
    else:
        assert len(fs.plan(model, torch.ones(2, size, 6, 6), repeats=1).layers) == 4
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(now is before for now, before in zip(model.buffers(), buffers, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()] == hooks
    assert {layer.watcher for layer in sparse_layers(model).values()} == {watcher, None}
    assert all(m.training == training for m in model.modules())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_resnet_enters_once_and_leaves_once(training):
    model = fs.sparsify(fs.models.resnet18(width=8), 0.2, distribution="uniform").train(training)
    table = fs.plan(model, torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)), repeats=1)
    assert all(row.blocked and row.backend == "cpu" for row in table.layers)
    assert ways(table) == [("enters", "conv1"), ("leaves", "fc")]
    assert table.conversions[1].why == "no rule covers torch.nn.functional.linear; the layer is dense"
    assert table.detours == ()
    assert "hint" not in str(table)


def test_a_function_without_a_rule_in_the_middle_is_named(pictures):
    table = fs.plan(convs(nn.ReLU(), Sorted()), pictures, repeats=1)
    assert ways(table) == [("enters", "0"), ("leaves", "2"), ("enters", "3"), ("leaves", "")]
    assert table.conversions[1].function == "torch.sort"
    assert [c.module for c in table.detours] == ["2"]
    text = str(table)
    assert "  leaves at 2 (16x36x6x6): no rule covers torch.sort\n" in text
    assert "hint: ways out and back in that could be saved: 2 (torch.sort);" in text


def test_a_masked_layer_in_the_middle_is_worth_its_conversions(pictures):
    model = convs()
    fs.set_masks(model, {"1.weight": torch.ones(36, 36, 3, 3, dtype=torch.bool)})
    table = fs.plan(model, pictures, repeats=1)
    # Where everything is kept, neighbouring channels are kept alike.
    words = "density 1.00 is above break-even, 0.80 for a batch of 16"
    assert [(row.backend, row.blocked, row.why) for row in table.layers] == [
        ("cpu", True, ""),
        ("masked", False, words),
        ("cpu", True, ""),
    ]
    assert ways(table) == [("enters", "0"), ("leaves", "1"), ("enters", "3"), ("leaves", "")]
    assert table.conversions[1].why == f"layer computed by masked: {words}"
    assert table.detours == ()
    assert "hint" not in str(table)


def test_a_backend_that_somebody_set_is_a_detour(pictures):
    model = convs()
    model[1].set_backend("reference")
    table = fs.plan(model, pictures, repeats=1)
    assert table.conversions[1].why == "layer computed by reference: chosen by set_backend"
    assert "that could be saved: 1 (layer);" in str(table)


def test_the_break_even_is_that_of_the_place(pictures):
    # Half of the weights: too many for a layer by itself, few enough between two others.
    model = convs(density=0.5)
    inside = fs.plan(model, pictures, repeats=1).layers[1]
    assert (inside.backend, inside.blocked) == ("cpu", True)
    assert inside.reasons == {"cpu": "chosen", "masked": "not needed"}
    alone = fs.plan(leave_blocked(model), pictures, repeats=1).layers[1]
    assert (alone.backend, alone.blocked) == ("masked", False)
    assert alone.why == "density 0.50 is above break-even, 0.30 for a batch of 16"


def test_networks_whose_activations_stay_ordinary(pictures):
    apart = fs.plan(leave_blocked(convs()), pictures, repeats=1)
    assert apart.conversions == ()
    assert [row.backend for row in apart.layers] == ["cpu"] * 3
    assert not any(row.blocked for row in apart.layers)
    assert "fedsparse.blocked.keep_blocked(model) lets them" in str(apart).splitlines()[-1]
    other = fs.plan(convs().double(), pictures.double(), repeats=1)
    assert other.conversions == ()
    assert {row.why for row in other.layers} == {"cpu kernels compute float32 and bfloat16, the tensors are float64"}
    assert str(other).splitlines()[-1] == "activations stay ordinary tensors"


def test_a_network_inside_a_model(pictures):
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"body": convs()})["body"], nn.Flatten())
    table = fs.plan(model, pictures, repeats=1)
    assert [row.name for row in table.layers] == ["1.0.weight", "1.1.weight", "1.3.weight"]
    assert ways(table) == [("enters", "1.0"), ("leaves", "1")]
    assert str(table).splitlines()[-1] == "  leaves at 1 (16x4x4x4): end of the network"


def test_layers_with_inputs_of_other_shapes():
    """A single picture, a rim that torch pads, and rows in three dimensions."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
            self.rows = nn.Linear(5, 6)

        def forward(self, x):
            return self.rows(self.conv(x=x))

    model = fs.sparsify(Odd(), 0.3, exclude="none")
    fs.set_backend(model, "cpu")
    table = fs.plan(model, torch.zeros(3, 5, 5), repeats=1)
    assert all(row.blocked and row.ms_sparse > 0 for row in table.layers)
    assert [(c.enters, c.module, c.function) for c in table.conversions] == [
        (True, "conv", None),
        (False, "conv", "torch.Tensor.squeeze"),
        (True, "rows", None),
        (False, "rows", "torch.Tensor.reshape"),
    ]


def test_a_layer_by_itself(pictures):
    layer = convs()[0]
    table = fs.plan(layer, pictures, repeats=1)
    assert [(row.name, row.backend, row.blocked) for row in table.layers] == [(".weight", "cpu", False)]


@pytest.mark.parametrize(("dtype", "blocked"), [(torch.bfloat16, True), (torch.float16, False)])
def test_autocast_to_bfloat16_stays_in_the_layout(pictures, dtype, blocked):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            x = self.first(x)
            with torch.autocast("cpu", dtype):
                return self.second(x)

    table = fs.plan(fs.sparsify(Half(), 0.2, exclude="none"), pictures, repeats=1)
    assert [row.blocked for row in table.layers] == [True, blocked]
    why = "end of the network" if blocked else "layer computed by cpu: on ordinary tensors here"
    assert table.conversions[1].why == why
