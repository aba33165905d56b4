"""Pruned activations of layers called by themselves, and how they are switched on and off."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.backends.cpu import lanes
from fedsparse.nn import SparseConv2d, SparseLinear, prune_activations

RULES = ("tile", "global")


def layers():
    """Sparse layers and inputs."""
    torch.manual_seed(1)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    linear = nn.Linear(20, 9)
    return {
        "convolution": (SparseConv2d.from_dense(conv, torch.rand(conv.weight.shape) < 0.4), torch.randn(7, 6, 9, 8)),
        "linear": (SparseLinear.from_dense(linear, torch.rand(linear.weight.shape) < 0.4), torch.randn(3, 11, 20)),
    }


def dense_product(layer, x, weight, bias):
    if isinstance(layer, SparseLinear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def pruned(x, share, rule, rows):
    tiles = x.double().reshape(1 if rule == "global" else rows, -1)
    order = torch.sort(-tiles.abs(), dim=1, stable=True).indices[:, : round(share * tiles.shape[1])]
    return torch.where(torch.zeros_like(tiles, dtype=torch.bool).scatter_(1, order, True), tiles, 0.0).view(x.shape)


def gradients(layer, x, grad):
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad.clone() for name, p in layer.named_parameters()}}


@pytest.mark.parametrize("backend", ["cpu", "masked", "reference"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", layers())
def test_gradients_are_those_of_the_pruned_input(name, rule, backend):
    layer, x = layers()[name]
    layer.set_backend(backend)
    with torch.no_grad():
        grad = torch.randn_like(layer(x))
    whole = gradients(layer, x, grad)
    found = gradients(prune_activations(layer, 0.3, rule=rule), x, grad)
    for exact in ("y", "x", "bias"):
        assert torch.equal(found[exact], whole[exact])
    kept = pruned(x, 0.3, rule, rows=33 if name == "linear" else 7)
    weight = layer.weight.double().requires_grad_()
    dense_product(layer, kept, weight, None).backward(grad.double())
    truth = layer.pattern.gather(weight.grad)
    torch.testing.assert_close(found["values"].double(), truth, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole["values"].double(), truth, rtol=1e-2)
    exact = gradients(prune_activations(layer, 1.0, rule=rule), x, grad)
    assert all(torch.equal(exact[key], whole[key]) for key in whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    layer, x = layers()["convolution"]
    layer, x = layer.to(dtype), x.to(dtype)
    grad = torch.ones_like(layer(x))
    found = gradients(prune_activations(layer, 0.5), x, grad)["values"]
    weight = layer.weight.double().requires_grad_()
    dense_product(layer, pruned(x, 0.5, "tile", 7), weight, None).backward(grad.double())
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found.double(), layer.pattern.gather(weight.grad), rtol=tolerance, atol=20 * tolerance)


def test_values_in_bfloat16():
    layer, x = layers()["convolution"]
    grad = torch.ones_like(layer(x))
    found = gradients(prune_activations(layer, 1.0, dtype=torch.bfloat16), x, grad)
    truth = gradients(prune_activations(layer, None), x.bfloat16().float(), grad)
    assert torch.equal(found["values"], truth["values"])
    assert torch.equal(found["x"], truth["x"])


def saved_bytes(call):
    """Bytes of all tensors that a forward pass saves, each storage once."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    return sum(storages.values()), result


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), (torch.float32, 4), (torch.bfloat16, 2)])
def test_saves_one_bit_for_each_element_and_the_kept_values(dtype, size):
    layer, _ = layers()["convolution"]
    layer.set_backend("cpu")
    x = torch.randn(32, 6, 16, 16).clamp(min=0)
    assert saved_bytes(lambda: layer(x))[0] == x.nbytes + layer.values.nbytes + sum(t.nbytes for t in layer.index)
    for share in (0.25, 1.0):
        prune_activations(layer, share, dtype=dtype)
        count = 32 * 384 if share == 0.25 else int(x.count_nonzero())
        found, _ = saved_bytes(lambda: layer(x))
        chunks = x.numel() // 512
        assert found == x.numel() // 8 + 4 * (chunks + 1) + size * (count + lanes()) + layer.values.nbytes


def test_only_in_training_and_where_gradients_are_wanted():
    layer, x = layers()["convolution"]
    grad = torch.ones_like(layer(x))
    whole = gradients(layer, x, grad)
    prune_activations(layer, 0.1)
    assert torch.equal(gradients(layer.eval(), x, grad)["values"], whole["values"])
    layer.train()
    assert not torch.equal(gradients(layer, x, grad)["values"], whole["values"])
    with torch.no_grad():
        assert saved_bytes(lambda: layer(x))[0] == 0
    layer.values.requires_grad_(False)
    x = x.requires_grad_()
    layer(x).backward(grad)
    assert torch.equal(x.grad, whole["x"])


def test_switched_on_and_off():
    model = fs.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), 0.5, exclude="none")
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks), len(model._forward_hooks_always_called)
    state = model.state_dict()
    assert prune_activations(model, 0.3) is model
    prune_activations(model, 0.4, rule="global", dtype=torch.bfloat16)
    assert len(model._forward_pre_hooks) == hooks[0] + 1
    assert model.state_dict().keys() == state.keys()
    prune_activations(model[0], None)
    assert [model[i].activation_pruning is None for i in (0, 2)] == [True, False]
    dense = fs.densify(copy.deepcopy(model))
    assert not dense._forward_pre_hooks
    assert prune_activations(model, None) is model
    assert model[2].activation_pruning is None
    assert hooks == (len(model._forward_pre_hooks), len(model._forward_hooks), len(model._forward_hooks_always_called))


def test_copies_and_pickles_prune_alike():
    model = fs.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), 0.5, exclude="none")
    fs.set_backend(model, "cpu")
    x = torch.randn(9, 3, 10, 10)
    grad = torch.ones_like(model(x))
    whole = gradients(model, x, grad)
    prune_activations(model, 0.2)
    found = gradients(model, x, grad)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again = gradients(other, x, grad)
        assert all(torch.equal(again[key], found[key]) for key in found)
        assert not torch.equal(again["2.values"], whole["2.values"])


def test_autocast_leaves_products_in_float32():
    layer, x = layers()["convolution"]
    prune_activations(layer, 0.3)
    grad = torch.ones_like(layer(x))
    found = gradients(layer, x, grad)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(layer, x.bfloat16(), grad)
    assert cast["y"].dtype == torch.float32
    torch.testing.assert_close(cast["values"], found["values"], rtol=0.1, atol=1.0)


# torch's own remark about what it meets where it breaks a graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_models_prune_between_their_graphs():
    layer, x = layers()["convolution"]
    prune_activations(layer, 0.3)
    grad = torch.ones_like(layer(x))
    found = gradients(layer, x, grad)
    compiled = gradients(torch.compile(layer, backend="eager"), x, grad)
    assert torch.equal(compiled["_orig_mod.values"], found["values"])


def test_second_derivatives_are_refused():
    layer, x = layers()["convolution"]
    prune_activations(layer, 0.3)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.values, create_graph=True)
    with pytest.raises(fs.DoubleBackwardError):
        grad.sum().backward()


def test_watched_layers_see_the_whole_input():
    layer, x = layers()["convolution"]
    model = nn.Sequential(layer)
    found = []
    for share in (None, 0.1):
        prune_activations(model, share)
        with fs.topk_pruned_gradient(layer, 5) as top:
            model(x).sum().backward()
        found.append(top.indices)
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["convolution", "linear"])
def test_watched_layers_prune_in_the_backward_pass(name, backend):
    layer, x = layers()[name]
    layer.set_backend(backend)
    prune_activations(layer, 0.2)
    grad = torch.ones_like(layer(x))
    found = gradients(layer, x, grad)
    with fs.topk_pruned_gradient(layer, 5):
        watched = gradients(layer, x, grad)
    assert found.keys() == watched.keys()
    assert all(torch.equal(watched[key], found[key]) for key in found)


def test_what_is_refused():
    layer, _ = layers()["linear"]
    with pytest.raises(fs.ConfigError, match=r"in \(0, 1\]; got 0"):
        prune_activations(layer, 0)
    with pytest.raises(fs.ConfigError, match="unknown rule 'best'"):
        prune_activations(layer, 0.5, rule="best")
    with pytest.raises(fs.ConfigError, match="float16"):
        prune_activations(layer, 0.5, dtype=torch.float16)
    with pytest.raises(fs.ConfigError, match="Linear has no sparse layer"):
        prune_activations(nn.Linear(3, 3), 0.5)
    assert layer.activation_pruning is None
