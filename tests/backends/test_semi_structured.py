"""Torch's 2:4 products behind a backend: what it refuses and hands over here, its numbers on a device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fedsparse as fs
from fedsparse.backends import Case, Geometry
from fedsparse.backends.masked import MaskedBackend
from fedsparse.backends.semi_structured import SemiStructuredBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern
from tests.devices import CUDA

CASE = Case((64, 128), (5, 128), 4096, dtype=torch.bfloat16, device="cuda")
REFUSALS = [
    (CASE, None),
    (replace(CASE, dtype=torch.float16), None),
    (
        replace(CASE, device="cpu"),
        "sparse tensor cores belong to a CUDA device of compute capability 8.0 or more, got cpu",
    ),
    (
        replace(CASE, shape=(64, 128, 1, 1), input=(5, 128, 3, 3), geometry=Geometry()),
        "torch has semi-structured products for linear layers only; use 'masked' or 'cuda' for convolutions",
    ),
    (replace(CASE, dtype=torch.float32), "weights must be float16 or bfloat16, got float32"),
    (replace(CASE, shape=(48, 128)), "outputs must be a multiple of 32 and inputs of 64, got (48, 128)"),
    (replace(CASE, shape=(64, 96)), "outputs must be a multiple of 32 and inputs of 64, got (64, 96)"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "words"), REFUSALS)
def test_refusals_word_for_word(case, words):
    assert SemiStructuredBackend().refuse(case) == words


def two_of_four(generator, shape=(64, 128)) -> torch.Tensor:
    """A mask that keeps two of every four neighbouring inputs, any two."""
    order = torch.rand(*shape[:1], shape[1] // 4, 4, generator=generator).argsort(2)
    return (order < 2).view(shape)


@pytest.fixture
def held(generator):
    """Pattern, case and operands on the CPU."""
    pattern = Pattern.from_mask(two_of_four(generator))
    case = replace(CASE, nnz=pattern.nnz, device="cpu")
    x, bias, grad = (torch.randn(size, generator=generator).bfloat16() for size in ((5, 128), (64,), (5, 64)))
    return pattern, case, x, torch.randn(pattern.nnz, generator=generator).bfloat16(), bias, grad


def test_hands_a_weight_of_two_in_four_to_torch(held):
    pattern, case, x, values, bias, grad = held
    seen = []
    backend = SemiStructuredBackend(compress=lambda weight: seen.append(weight) or weight, device="cpu")
    assert backend.refuse(case) is None
    assert torch.equal(
        backend.forward(x, values, pattern, bias, case), MaskedBackend().forward(x, values, pattern, bias, case)
    )
    (weight,) = seen
    assert torch.equal(weight, pattern.scatter(values))
    assert weight.is_contiguous()
    for got, wanted in zip(
        backend.backward(grad, x, values, pattern, (True, True), case),
        MaskedBackend().backward(grad, x, values, pattern, (True, True), case),
        strict=True,
    ):
        assert torch.equal(got, wanted)


def test_fewer_than_two_will_do_and_three_will_not(generator, held):
    _, case, x, *_ = held
    backend = SemiStructuredBackend(compress=lambda weight: weight, device="cpu")
    mask = two_of_four(generator)
    mask[3, 8:12] = torch.tensor([False, True, False, False])
    mask[0] = False
    for kept in (mask, torch.zeros_like(mask), torch.ones(64, 1, dtype=torch.bool) & (torch.arange(128) % 4 == 1)):
        pattern = Pattern.from_mask(kept)
        backend.forward(x, torch.ones(pattern.nnz, dtype=x.dtype), pattern, None, replace(case, nnz=pattern.nnz))
    mask[63, 124:] = torch.tensor([True, False, True, True])
    pattern = Pattern.from_mask(mask)
    with pytest.raises(
        BackendError, match=r"at most 2 kept of every 4 neighbouring inputs, and this mask of \(64, 128\)"
    ):
        backend.forward(x, torch.ones(pattern.nnz, dtype=x.dtype), pattern, None, case)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_trains_on_a_device(generator, device, dtype):
    dense = nn.Linear(256, 128)
    layer = fs.sparsify(nn.Sequential(dense), 0.5, granularity="nm:2:4", exclude="none").to(device, dtype)
    x = torch.randn(24, 256, generator=generator).to(device, dtype).requires_grad_()
    found = []
    for backend in ("masked", "semi_structured"):
        fs.set_backend(layer, backend).zero_grad()
        x.grad = None
        y = layer(x)
        y.float().square().sum().backward()
        found.append((y.detach(), x.grad, layer[0].values.grad))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
