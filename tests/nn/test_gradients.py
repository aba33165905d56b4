"""Dense gradients of sparse weights, against autograd on the dense network in float64."""

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.errors import PatternError
from fedsparse.nn import SparseConv2d, SparseLinear, dense_gradients, sparse_layers

LAYERS = {
    "linear": (lambda: nn.Linear(20, 13), (6, 20)),
    "linear 3-d": (lambda: nn.Linear(20, 13), (2, 3, 20)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 7, 6)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, (1, 3), groups=2), (3, 4, 5, 6)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 5, 6)),
    "unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_position_has_the_gradient_of_the_dense_layer(name, some_mask, generator):
    make, shape = LAYERS[name]
    dense = make()
    layer = (SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d).from_dense(dense, some_mask(dense.weight))
    x = torch.randn(shape, generator=generator)
    weights = torch.randn(layer(x).shape, generator=generator)
    reference = layer.to_dense().double()
    (reference(x.double()) * weights.double()).sum().backward()
    found = {}
    with dense_gradients({"a": layer}, found.__setitem__):
        (layer(x) * weights).sum().backward()
    assert found.keys() == {"a"}
    torch.testing.assert_close(found["a"].double(), reference.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.values.grad, layer.pattern.gather(found["a"]), rtol=1e-5, atol=1e-5)
    assert layer.watcher is None


def test_steps_inside_a_network_are_the_same_and_each_is_handed_over(net, generator):
    model, twin = (fs.sparsify(net(), 0.4, exclude="none") for _ in range(2))
    dense = fs.densify(fs.sparsify(net(), 0.4, exclude="none")).double()
    found = []
    layers = sparse_layers(model)
    for step in range(2):
        x = torch.randn(5, 2, 6, 6, generator=generator)
        with dense_gradients(layers, lambda name, gradient, step=step: found.append((step, name, gradient))):
            with torch.no_grad():
                model.eval()(x)  # an evaluation hands over nothing
            model.train()(x).square().mean().backward()
        twin(x).square().mean().backward()
        dense(x.double()).square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)
    assert [(step, name) for step, name, _ in found] == [(s, n) for s in (0, 1) for n in reversed(layers)]
    for name in layers:
        added = sum(gradient for _, other, gradient in found if other == name)
        torch.testing.assert_close(added.double(), dense.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


def test_a_layer_used_twice_is_refused(some_mask):
    dense = nn.Linear(8, 8)
    layer = SparseLinear.from_dense(dense, some_mask(dense.weight))
    with (
        pytest.raises(PatternError, match=r"^'w' ran twice before a backward pass inside dense_gradients"),
        dense_gradients({"w": layer}, lambda *_: None),
    ):
        layer(layer(torch.ones(3, 8)))
    assert layer.watcher is None
