"""The largest gradients of pruned weights, against a stable sort of the dense gradient."""

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.errors import PatternError
from fedsparse.nn import SparseConv2d, SparseLinear


def dense_gradient(sparse, x, weights):
    """dL/dW of every position, kept or not, in float64, for the loss sum(weights * y)."""
    dense = sparse.to_dense().double()
    (dense(x.double()) * weights.double()).sum().backward()
    return dense.weight.grad


def stable_top(gradient, mask, k):
    pruned = (~mask).view(-1).nonzero().squeeze(1)
    found = gradient.view(-1)[pruned]
    order = torch.sort(found.abs(), descending=True, stable=True).indices[:k]
    return pruned[order], found[order]


def integers(shape, generator):
    """Whole numbers of which most are 0, so that gradients are exact and tie."""
    return torch.randint(-3, 4, shape, generator=generator).div(3, rounding_mode="trunc").float()


LAYERS = {
    "linear": (lambda: nn.Linear(20, 13), (6, 20)),
    "linear 3-d": (lambda: nn.Linear(20, 13), (2, 3, 20)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), groups=2), (3, 4, 5, 6)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 5, 6)),
    "lopsided": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (2, 4, 5, 6)),
    "unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("backend", ["auto", "reference", "masked", "cpu"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_stable_sort_with_ties(name, backend, some_mask, generator):
    make, shape = LAYERS[name]
    dense = make()
    mask = some_mask(dense.weight)
    layer = (SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d).from_dense(dense, mask)
    layer.set_backend(backend)
    x = integers(shape, generator)
    weights = integers(layer(x).shape, generator)
    gradient = dense_gradient(layer, x, weights)
    pruned = int((~mask).sum())
    assert len(gradient[~mask].abs().unique()) < pruned, "there must be ties"
    for k in (0, 1, pruned // 2, pruned, pruned + 9):
        with fs.topk_pruned_gradient(layer, k) as top:
            (layer(x) * weights).sum().backward()
        positions, gradients = stable_top(gradient, mask, k)
        assert torch.equal(top.indices, positions)
        assert torch.equal(top.gradients.double(), gradients)
    assert layer.watcher is None


def test_inside_a_model_the_training_step_is_the_same(net, generator):
    model, twin = (fs.sparsify(net(), 0.4, exclude="none") for _ in range(2))
    x = torch.randn(5, 2, 6, 6, generator=generator)
    with fs.topk_pruned_gradient(model.conv, 7) as first, fs.topk_pruned_gradient(model.hidden, 5) as second:
        model(x).square().mean().backward()
    twin(x).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert (len(first.indices), len(second.indices)) == (7, 5)

    dense = fs.densify(twin)
    dense.zero_grad()
    dense(x).square().mean().backward()
    for top, layer, weight in ((first, model.conv, dense.conv.weight), (second, model.hidden, dense.hidden.weight)):
        positions, gradients = stable_top(weight.grad, layer.mask, len(top.indices))
        assert torch.equal(top.indices, positions)
        torch.testing.assert_close(top.gradients, gradients, rtol=1e-4, atol=1e-7)


@pytest.fixture
def layer(some_mask):
    dense = nn.Linear(8, 6)
    return SparseLinear.from_dense(dense, some_mask(dense.weight))


def test_a_frozen_layer_is_probed_too(layer, generator):
    """Where only the input needs a gradient, the pruned weights' gradients exist all the same."""
    layer.requires_grad_(False)
    x = integers((3, 8), generator).requires_grad_()
    with fs.topk_pruned_gradient(layer, 4) as top:
        layer(x).sum().backward()
    positions, _ = stable_top(dense_gradient(layer, x.detach(), torch.ones(3, 6)), layer.mask, 4)
    assert torch.equal(top.indices, positions)


def test_uses_of_a_shared_linear_layer_add_up(some_mask, generator):
    """As in a language model: the table of tokens is looked up and predicts; at each place either use matters."""
    dense = nn.Linear(20, 13, bias=False)
    mask = some_mask(dense.weight)
    layer = SparseLinear.from_dense(dense, mask)
    x, more = integers((2, 3, 20), generator), integers((5, 20), generator)
    weights, others = integers((2, 3, 13), generator), integers((5, 13), generator)
    gradient = dense_gradient(layer, x, weights) + dense_gradient(layer, more, others)
    pruned = int((~mask).sum())
    with fs.topk_pruned_gradient(layer, pruned) as top:
        ((layer(more) * others).sum() + (layer(x) * weights).sum()).backward()
    positions, gradients = stable_top(gradient, mask, pruned)
    assert torch.equal(top.indices, positions)
    assert torch.equal(top.gradients.double(), gradients)


def test_misuse(layer):
    x = torch.ones(3, 8)
    with pytest.raises(PatternError, match="need a sparse layer, got Linear"):
        fs.topk_pruned_gradient(nn.Linear(3, 3), 1)
    with pytest.raises(PatternError, match="k must not be negative, got -1"):
        fs.topk_pruned_gradient(layer, -1)
    with pytest.raises(PatternError, match="no gradient reached the layer"), fs.topk_pruned_gradient(layer, 1):
        layer(x)
    conv = SparseConv2d.from_dense(nn.Conv2d(1, 1, 2), torch.tensor([[[[True, False], [True, True]]]]))
    picture = torch.ones(1, 1, 3, 3)
    with pytest.raises(PatternError, match="convolution ran twice"), fs.topk_pruned_gradient(conv, 1):
        (conv(picture) + conv(picture)).sum().backward()
    assert conv.watcher is None
    with fs.topk_pruned_gradient(layer, 1):
        layer(x).sum().backward()
        with pytest.raises(PatternError, match="ran again after backward"):
            layer(x)
    top = fs.topk_pruned_gradient(layer, 1)
    with pytest.raises(PatternError, match="no result before backward"):
        _ = top.indices


def test_an_error_inside_comes_through(layer):
    with pytest.raises(ZeroDivisionError), fs.topk_pruned_gradient(layer, 1):
        raise ZeroDivisionError
    assert layer.watcher is None


def test_no_gradients_at_all(layer):
    with pytest.raises(PatternError), fs.topk_pruned_gradient(layer, 1), torch.no_grad():
        layer(torch.ones(3, 8))


def test_outputs_may_be_changed_in_place(layer, generator):
    x = integers((3, 8), generator)
    with fs.topk_pruned_gradient(layer, 4) as top:
        torch.relu_(layer(x)).sum().backward()
    positions, _ = stable_top(dense_gradient(layer, x, (layer(x) > 0).float()), layer.mask, 4)
    assert torch.equal(top.indices, positions)
