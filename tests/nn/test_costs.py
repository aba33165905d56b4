"""Costs follow the kept weights: memory of a step, bytes of a model."""

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse import _native
from fedsparse.nn import SparseConv2d, SparseLinear, read_weights, sparse_layers
from fedsparse.pattern import Pattern
from fedsparse.wire import Payload

MIB = 1 << 20

counted = pytest.mark.skipif(
    not _native.extension().memory_counted(), reason="the allocator cannot be counted on this system"
)


def random_pattern(shape, nnz, generator):
    flat = torch.randperm(torch.Size(shape).numel(), generator=generator)[:nnz].sort().values
    return Pattern.from_flat(shape, flat)


@pytest.fixture
def large(generator):
    """A 4096 x 4096 layer at 1 %: values of 0.64 MiB, where a dense weight has 64 MiB."""
    pattern = random_pattern((4096, 4096), 4096 * 41, generator)
    return SparseLinear(pattern, torch.randn(pattern.nnz, generator=generator), torch.zeros(4096))


@counted
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_training_step_allocates_nothing_dense(make, large, generator):
    x = torch.randn(16, 4096, generator=generator)
    optimizer = make(large.parameters(), lr=0.01)
    with fs.measure() as m:
        large(x).square().mean().backward()
        optimizer.step()
    # Gradient and state, entries of the kernels' programs, input and output planes: some 20 bytes a kept weight.
    assert 0 < m.peak_bytes.value < 8 * MIB


@counted
def test_the_dense_layer_would(generator):
    """What the bound above is worth: one dense gradient is eight times as much."""
    dense = nn.Linear(4096, 4096)
    with fs.measure() as m:
        dense(torch.randn(16, 4096, generator=generator)).square().mean().backward()
    assert m.peak_bytes.value > 64 * MIB


@counted
def test_the_probe_holds_no_dense_gradient(large, generator):
    x = torch.randn(16, 4096, generator=generator)
    with fs.measure() as m, fs.topk_pruned_gradient(large, 1000) as top:
        large(x).square().mean().backward()
    assert len(top.indices) == 1000
    assert m.peak_bytes.value < 12 * MIB


@counted
def test_a_new_mask_costs_no_dense_weight(large, generator):
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1, momentum=0.9)
    large(torch.randn(16, 4096, generator=generator)).sum().backward()
    optimizer.step()
    new = random_pattern((4096, 4096), 4096 * 41, generator)
    with fs.measure() as m:
        large.repattern(new, optimizer=optimizer)
    assert m.peak_bytes.value < 12 * MIB


@counted
def test_a_convolution_step_allocates_nothing_dense(generator):
    """512 x 512 x 3 x 3 at 1 %: a dense weight has 9 MiB."""
    pattern = random_pattern((512, 512, 3, 3), 23_592, generator)
    conv = nn.Conv2d(512, 512, 3, padding=1, device="meta")
    layer = SparseConv2d(pattern, torch.randn(pattern.nnz, generator=generator), None, conv)
    x = torch.randn(2, 512, 4, 4, generator=generator)
    with fs.measure() as m:
        layer(x).square().mean().backward()
    assert 0 < m.peak_bytes.value < 6 * MIB


def test_everything_that_lasts_has_length_nnz(large):
    assert [p.numel() for p in large.parameters()] == [large.nnz, 4096]
    held = sum(t.numel() * t.element_size() for t in large.buffers())
    assert held == large.pattern.nbytes <= 6 * large.nnz + 8 * 4097


def test_bytes_of_resnet18_at_a_tenth(generator):
    """ResNet-18, uniform at density 0.1: what training holds beside activations, and what is sent."""
    model = fs.models.resnet18()
    dense = 3 * sum(p.numel() * p.element_size() for p in model.parameters())  # with gradients and momentum
    assert dense == 3 * 4 * 11_173_962
    sent_dense = len(fs.wire.encode(Payload("train", 0, read_weights(model))))
    fs.sparsify(model, 0.1, distribution="uniform", score="random", generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8, generator=generator)).sum().backward()
    optimizer.step()
    layers = sparse_layers(model).values()
    tensors = [t for p in model.parameters() for t in (p, p.grad, optimizer.state[p]["momentum_buffer"])]
    tensors += [t for layer in layers for t in layer.index]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert 0.1 * dense < held <= 0.16 * dense
    assert sum(layer.pattern.nbytes for layer in layers) <= 8 * sum(layer.nnz for layer in layers)
    weights = read_weights(model)
    first = len(fs.wire.encode(Payload("train", 0, weights)))
    later = len(fs.wire.encode(Payload("train", 1, weights), known=[weights.topology.digest]))
    assert weights.nbytes < later < first <= 0.15 * sent_dense
    assert later <= 0.102 * sent_dense
