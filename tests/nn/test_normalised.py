"""Normalised convolutions: numbers by hand, and the sparse layer against autograd on dense float64 filters."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

import fedsparse as fs
from fedsparse.errors import ShapeError
from fedsparse.nn import GAMMA, NormalisedConv2d, SparseNormalisedConv2d, dense_gradients, read_weights, write_weights
from fedsparse.nn.normalised import _Normalise
from fedsparse.pattern import Topology

OPTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 3), "dilation": (2, 1)},
    {"kernel_size": 3, "groups": 2, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 1, "bias": False},
]


def layer_of(options, some_mask, generator):
    """A sparse layer with uneven gains; its last filter is all but constant, its first pruned altogether."""
    dense = NormalisedConv2d(4, 6, **options)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
        dense.gain.copy_(1 + 0.3 * torch.randn(6, generator=generator))
        dense.weight[5] *= 1e-3
        mask = some_mask(dense.weight, 0.5)
        mask[0] = False
    return SparseNormalisedConv2d.from_dense(dense, mask)


def plain(weight, gain, mask):
    """w^ of the formula in the module, written with torch's functions."""
    flat = weight.flatten(1)
    variance = flat.var(1, unbiased=True)
    scale = GAMMA * gain / (flat.shape[1] * variance).clamp(min=1e-4).sqrt()
    return (weight - flat.mean(1).view(-1, 1, 1, 1)) * scale.view(-1, 1, 1, 1) * mask


# ---- by hand
def filters(values, *, gamma):
    """w^ of a layer with one filter of four weights, those that are 0 pruned: dense and sparse."""
    dense = NormalisedConv2d(1, 1, 2, bias=False, gamma=gamma)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor(values).view(1, 1, 2, 2))
    sparse = SparseNormalisedConv2d.from_dense(dense, dense.weight != 0)
    return sparse.to_dense().normalised().flatten(), sparse.pattern.scatter(sparse.effective_values()).flatten()


@pytest.mark.parametrize(("gamma", "ends"), [(1.0, (-0.231455, 0.694365)), (GAMMA, (-0.396450, 1.189349))])
def test_a_pruned_filter_by_hand(gamma, ends):
    for found in filters([1.0, 2.0, 0.0, 5.0], gamma=gamma):
        assert found.tolist() == pytest.approx([ends[0], 0.0, 0.0, ends[1]], abs=2e-6)
        assert found[2] == 0  # though (0 - 2) * 0.231455 is -0.4629


def test_a_filter_may_be_scaled_as_one_likes():
    for one, ten in zip(filters([1.0, 2.0, 0.0, 5.0], gamma=1.0), filters([10.0, 20, 0, 50], gamma=1.0), strict=True):
        torch.testing.assert_close(one, ten, rtol=1e-6, atol=1e-7)


def test_constant_and_empty_filters_are_zero():
    for found in (*filters([3.0, 3, 3, 3], gamma=1.0), *filters([0.0, 0, 0, 0], gamma=1.0)):
        assert found.tolist() == [0, 0, 0, 0]


def test_gamma_undoes_a_relu():
    assert pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), abs=1e-6) == GAMMA


def test_a_filter_of_one_weight_has_no_variance():
    with pytest.raises(ShapeError, match="single weight has no variance"):
        NormalisedConv2d(1, 3, 1)


# ---- against dense float64
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_output_and_gradients_are_those_of_dense_float64(options, some_mask, generator):
    layer = layer_of(options, some_mask, generator)
    dense = copy.deepcopy(layer).to_dense().double()
    x = torch.randn(3, 4, 9, 7, generator=generator)
    one, two = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(one), dense(two)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(y.shape, generator=generator)
    y.backward(grad)
    expected.backward(grad.double())
    # The filter below the floor of the variance has gradients a hundred times the others'.
    torch.testing.assert_close(one.grad.double(), two.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.gain.grad.double(), dense.gain.grad, rtol=1e-4, atol=1e-4)
    wanted = layer.pattern.gather(dense.weight.grad)
    torch.testing.assert_close(layer.values.grad.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert not dense.weight.grad[~layer.mask].any()


def test_the_dense_layer_computes_the_formula(some_mask, generator):
    layer = layer_of(OPTIONS[0], some_mask, generator).double()
    wanted = plain(layer.weight, layer.gain, layer.mask)
    torch.testing.assert_close(layer.to_dense().normalised(), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.pattern.scatter(layer.effective_values()), wanted, rtol=1e-12, atol=1e-12)


def test_gradcheck(some_mask, generator):
    layer = layer_of(OPTIONS[0], some_mask, generator).double()
    scale = layer.gain.detach().requires_grad_()
    assert gradcheck(lambda v, s: _Normalise.apply(v, s, *layer._rows), (layer.values, scale), eps=1e-7, atol=1e-4)


def truth(layer, x, grad):
    """dL/dw at every position, in float64: each pruned one as if it alone joined the mask, with w^ = 0 for now."""
    layer = copy.deepcopy(layer).double()
    weight, mask = layer.weight, layer.mask
    dense = layer.to_dense()
    shape = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._rim, mode=layer.padding_mode), 0

    def gradient(joined):
        leaf = weight.clone().requires_grad_()
        wide = plain(leaf, dense.gain.detach(), joined)
        newcomer = joined & ~mask
        wide = wide - (wide * newcomer).detach()  # the value 0, the slope of the normalisation
        (F.conv2d(x.double(), wide, None, padding=padding, **shape) * grad.double()).sum().backward()
        return leaf.grad

    found = gradient(mask)
    for position in (~mask).nonzero().tolist():
        joined = mask.clone()
        joined[tuple(position)] = True
        found[tuple(position)] = gradient(joined)[tuple(position)]
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_of_pruned_weights_go_through_mean_and_variance(options, some_mask, generator):
    layer = layer_of(options, some_mask, generator)
    x = torch.randn(2, 4, 7, 6, generator=generator)
    grad = torch.randn(layer(x).shape, generator=generator)
    wanted = truth(layer, x, grad)
    pruned = int((~layer.mask).sum())
    with fs.topk_pruned_gradient(layer, pruned) as top:
        layer(x).backward(grad)
    caught = {}
    with dense_gradients({"w": layer}, caught.__setitem__):
        layer(x).backward(grad)
    found = torch.zeros(layer.pattern.size).index_copy_(0, top.indices, top.gradients).view(layer.pattern.shape)
    for mine, theirs in ((caught["w"], wanted), (found[~layer.mask], wanted[~layer.mask])):
        error = (mine.double() - theirs).abs()
        assert float((error / (1e-2 + theirs.abs())).max()) < 1e-3
    # In the order of a sort, and not in the order of the raw gradients.
    best = pruned // 5
    order = wanted.abs().flatten().masked_fill(layer.mask.flatten(), -1).sort(descending=True).indices[:best]
    assert torch.equal(top.indices[:best], order)
    assert top.indices.unique().numel() == pruned


# ---- a layer like any other
@pytest.fixture
def model(generator):
    convs = [NormalisedConv2d(2, 6, 3, padding=1, bias=False), nn.ReLU(), NormalisedConv2d(6, 8, 3, groups=2)]
    net = nn.Sequential(*convs, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return net


@pytest.fixture
def x(generator):
    return torch.randn(5, 2, 6, 6, generator=generator)


def test_a_blocked_network_computes_what_its_layers_do(model, x):
    sparse = fs.sparsify(model, 0.4)
    assert {type(m) for m in fs.nn.sparse_layers(sparse).values()} == {SparseNormalisedConv2d}
    y = sparse(x)
    y.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in sparse.named_parameters()}
    dense = fs.densify(copy.deepcopy(sparse)).double()
    dense.zero_grad()
    expected = dense(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    expected.square().sum().backward()
    for name, layer in fs.nn.sparse_layers(sparse).items():
        wanted = layer.pattern.gather(dense.get_parameter(name).grad)
        path = name.removesuffix("weight")
        torch.testing.assert_close(grads[path + "values"].double(), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            grads[path + "gain"].double(), dense.get_parameter(path + "gain").grad, rtol=1e-4, atol=1e-4
        )


def test_masks_and_states_travel(model, x):
    sparse = fs.sparsify(model, 0.4)
    twin, other = copy.deepcopy(sparse), fs.sparsify(fs.densify(copy.deepcopy(sparse)), 0.7)
    fs.set_masks(twin, fs.masks(other))
    assert not torch.equal(twin(x), sparse(x))
    twin.load_state_dict(sparse.state_dict())
    assert torch.equal(twin(x), sparse(x))
    plain_net = copy.deepcopy(other)
    write_weights(plain_net, read_weights(sparse))
    assert torch.equal(plain_net(x), sparse(x))
    assert {"0.gain", "2.gain", "2.bias"} <= read_weights(sparse).dense.keys()


def test_weights_that_become_dense_are_no_longer_masked(model):
    sparse = fs.sparsify(model, 0.4)
    weights = read_weights(sparse).moved_to(Topology())
    write_weights(sparse, weights)
    assert type(sparse[0]) is NormalisedConv2d
    assert sparse[0].mask is None
    assert read_weights(sparse).dense.keys() == weights.dense.keys()
    assert int((sparse[0].normalised() == 0).sum()) == 0


def test_a_densified_layer_stays_pruned_when_it_trains(model, x):
    sparse = fs.sparsify(model, 0.4)
    mask = sparse[0].mask
    dense = fs.densify(copy.deepcopy(sparse))
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    dense(x).square().sum().backward()
    optimizer.step()
    assert not dense[0].weight[~mask].any()
    assert not dense[0].normalised()[~mask].any()
    assert "0.mask" in dense.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype, some_mask, generator):
    layer = layer_of(OPTIONS[0], some_mask, generator).to(dtype)
    x = torch.randn(2, 4, 6, 6, generator=generator).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    expected = copy.deepcopy(layer).double()(x.double()).detach()
    tolerance = {torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    y.sum().backward()
    assert layer.values.grad.dtype == layer.gain.grad.dtype == dtype


def test_the_gradients_memory_is_that_of_kept_weights(some_mask, generator):
    """No tensor of the dense weight's size is saved for the backward pass."""
    layer = layer_of(OPTIONS[0], some_mask, generator)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer.effective_values().sum().backward()
    assert max(sizes) == layer.nnz < layer.pattern.size


# torch's tracer makes an object of the function, which torch itself advises against.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_without_a_break(compiler, some_mask, generator):
    layer = layer_of(OPTIONS[0], some_mask, generator)
    x = torch.randn(2, 4, 6, 6, generator=generator)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x), rtol=1e-6, atol=1e-6)
    y.square().sum().backward()
    found = layer.values.grad.clone()
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(found, layer.values.grad, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
