"""The cuda backend: its kernels on the CPU through the binding, its refusals, and the device where there is one."""

import gc
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsparse import _native
from fedsparse.backends import BATCH_INNERMOST, Case, Change, Geometry
from fedsparse.backends import cuda as cuda_module
from fedsparse.backends.cuda import CudaBackend
from fedsparse.backends.cuda_lists import Strips, Taps, build, problem_of
from fedsparse.backends.masked import MaskedBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_backend, check_products, product_cases
from tests.cuda.test_block import block, vector
from tests.devices import ComputesOnDevice, kernels, plain_products, pretend

pytestmark = pytest.mark.usefixtures("poisoned_memory")
CASE = Case((6, 4, 3, 3), (3, 4, 9, 8), 30, Geometry(padding=(1, 1)), device="cuda")


class OnCpu(CudaBackend):
    """Takes tensors in main memory for those of a device."""

    def refuse(self, case):
        return super().refuse(replace(case, device="cuda"))


@pytest.fixture
def backend(binding, monkeypatch):
    pretend(binding, monkeypatch)
    binding.shim_seed(1)
    yield OnCpu()
    binding.shim_seed(0)


def test_agrees_with_float64(backend, rng):
    for product in product_cases(rng, 30):
        check_backend(backend, product)


STRUCTURED = {
    "blocks": block(16, (32, 16, 3, 3), (3, 16, 5, 6), Geometry(padding=(1, 1))),
    "vectors": vector(8, (24, 11), (9, 11)),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_weights_take_tensor_cores(backend, name):
    product, widths = STRUCTURED[name].product, STRUCTURED[name].widths
    check_backend(backend, product)
    for backward in (False, True):
        kept = backend._list(product.pattern, product.case, backward=backward)
        assert isinstance(kept, Strips)
        assert kept.width == widths[backward]


def test_float32_products_round_to_tf32_where_torch_may(backend):
    product = STRUCTURED["blocks"].product
    torch.set_float32_matmul_precision("high")
    try:
        check_backend(backend, product, tolerance=1e-3)
        with pytest.raises(AssertionError, match="output is off by"):
            check_backend(backend, product)
    finally:
        torch.set_float32_matmul_precision("highest")


# Sums are float32; what is stored is rounded once more, by at most 2^-8 or 2^-11 of itself.
STORED = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("dtype", STORED)
def test_16_bits_are_stored_and_32_are_summed(backend, rng, dtype):
    for product in product_cases(rng, 9, dtype=dtype):
        check_products(backend, product, tolerance=STORED[dtype])


def test_same_bits_whatever_the_order_of_threads(backend, binding, rng):
    for product in product_cases(rng, 6):
        x, values, bias, grad = product.operands()

        def results(seed, x=x, values=values, bias=bias, grad=grad, product=product):
            binding.shim_seed(seed)
            y = backend.forward(x, values, product.pattern, bias, product.case)
            return [y, *backend.backward(grad, x, values, product.pattern, (True, True), product.case)]

        assert all(torch.equal(a, b) for a, b in zip(results(0), results(2), strict=True))


def test_an_empty_batch(backend):
    product = next(product_cases(np.random.default_rng(0), 1))
    case = replace(product.case, input=(0, *product.case.input[1:]))
    x, grad, values = torch.empty(case.input), torch.empty(case.output), torch.ones(case.nnz)
    assert backend.forward(x, values, product.pattern, None, case).shape == case.output
    found = backend.backward(grad, x, values, product.pattern, (True, True), case)
    assert found.x is not None
    assert found.x.shape == case.input
    assert torch.equal(found.values, torch.zeros(case.nnz))


def test_topk_of_16_bit_tensors_ranks_by_the_sums(backend):
    """Gradients are ranked before they are rounded to the dtype of the tensors."""
    pattern = Pattern.from_mask(torch.zeros(1, 4, dtype=torch.bool))
    x = torch.tensor([[1.0, 1.0, 3.0, 0.0], [0.001, 0.002, 0.0, 0.0]], dtype=torch.bfloat16)
    grad = torch.ones(2, 1, dtype=torch.bfloat16)
    case = Case((1, 4), (2, 4), 0, dtype=torch.bfloat16)
    positions, gradients = backend.topk_pruned(grad, x, pattern, 3, case)
    assert positions.tolist() == [2, 1, 0]
    assert torch.equal(gradients, torch.tensor([3.0, 1.0, 1.0], dtype=torch.bfloat16))


def test_topk_too_large_for_the_kernel_is_computed_densely(backend, binding, monkeypatch, rng):
    monkeypatch.setattr(binding, "cuda_topk_pruned_size", lambda *_: 0)
    monkeypatch.setattr(binding, "cuda_topk_pruned", None)
    for product in product_cases(rng, 3):
        check_backend(backend, product)


@pytest.mark.parametrize(("batch", "filled"), [(16, []), (12, ["cuda_to_lines"] * 2)])
def test_topk_reads_batch_innermost_tensors_where_they_lie(backend, monkeypatch, generator, batch, filled):
    product = STRUCTURED["blocks"].product
    case = replace(product.case, input=(batch, *product.case.input[1:]))
    grad, x = (torch.randn(shape, generator=generator) for shape in (case.output, case.input))
    wanted = MaskedBackend().topk_pruned(grad, x, product.pattern, 20, case)
    if not filled:
        grad, x = BATCH_INNERMOST.of(grad), BATCH_INNERMOST.of(x)
    launched = []
    for module in (cuda_module, sys.modules["fedsparse.backends.layout"]):
        monkeypatch.setattr(module, "launch", lambda name, *rest: launched.append(name) or _native.launch(name, *rest))
    positions, gradients = backend.topk_pruned(grad, x, product.pattern, 20, case)
    assert launched == [*filled, "cuda_topk_pruned"]
    assert torch.equal(positions, wanted[0])
    torch.testing.assert_close(gradients, wanted[1])


def test_lists_are_built_once_and_die_with_their_pattern(backend, monkeypatch):
    calls = []
    monkeypatch.setattr(cuda_module, "build", lambda wanted: calls.append(len(wanted)) or build(wanted))
    pattern = Pattern.from_mask(torch.ones(6, 4, 3, 3, dtype=torch.bool))
    case, values = replace(CASE, nnz=pattern.nnz), torch.ones(pattern.nnz)
    for batch in (3, 8, 3):
        x = torch.ones(batch, *case.input[1:])
        # An op sees the index tensors, not the pattern that they came from.
        backend.forward(
            x, values, Pattern.from_index(pattern.shape, pattern.index), None, replace(case, input=tuple(x.shape))
        )
    assert calls == [1]
    backend.forward(torch.ones(1, 4, 5, 5), values, pattern, None, replace(case, input=(1, 4, 5, 5)))
    assert calls == [1, 1]
    assert len(backend._lists) == 1
    del pattern
    gc.collect()
    assert len(backend._lists) == 0


def built(product, *, backward):
    """The list of one product, its pattern as it lies."""
    ((kept,),) = build([([problem_of(product.case, backward=backward)], product.pattern)])
    return kept


def test_kernels_of_any_size_are_listed_on_the_device(backend):
    pattern = Pattern.from_mask(torch.ones(3, 1, 65, 1, dtype=torch.bool))
    case = Case(pattern.shape, (1, 1, 66, 2), pattern.nnz, Geometry(), device="cpu")
    assert len(built(ProductCase(case, pattern, False, 0), backward=False).offset) == 195
    check_backend(backend, ProductCase(case, pattern, False, 0))


def test_devices_of_little_memory(backend, binding, monkeypatch):
    """99 KiB, as with compute capability 8.6, are enough for taps, 64 KiB, as with 7.5, for nothing."""
    product = STRUCTURED["blocks"].product
    monkeypatch.setattr(binding, "cuda_shared_limit", lambda: 99 << 10)
    assert isinstance(built(product, backward=False), Taps)
    monkeypatch.setattr(binding, "cuda_topk_pruned", None)
    check_backend(backend, product)
    monkeypatch.setattr(binding, "cuda_shared_limit", lambda: 64 << 10)
    assert backend.refuse(CASE) == "cuda kernels take 90 KiB of shared memory a block, the device has 64"


def with_strips(case, generator):  # noqa: ARG001  drawn as with_taps
    """Two patterns of vectors of 8 with as many weights, the second of which needs more chunks of lines."""
    units = torch.zeros(case.shape[0] // 8, math.prod(case.shape[1:]), dtype=torch.bool)
    few, more = units.clone(), units.clone()
    few[0, :32] = True
    more[0, :19] = more[1, 3:16] = True
    return [Pattern.from_mask(kept.repeat_interleave(8, 0).view(case.shape)) for kept in (few, more)]


def with_taps(case, generator):
    order = torch.randperm(math.prod(case.shape), generator=generator)
    first = Pattern.from_mask((order < 30).view(case.shape))
    return [first, Pattern.from_mask(first.mask().roll(1, 0))]


@pytest.mark.parametrize(
    ("drawn", "outputs", "kind"), [(with_taps, 6, Taps), (with_strips, 16, Strips)], ids=["taps", "strips"]
)
def test_lists_follow_an_index_that_is_overwritten(backend, drawn, outputs, kind, generator):
    """As a captured graph needs it: the same addresses, and the products of the new pattern."""
    case = replace(CASE, shape=(outputs, *CASE.shape[1:]))
    first, second = drawn(case, generator)
    case = replace(case, nnz=first.nnz)
    x, grad = torch.randn(case.input, generator=generator), torch.randn(case.output, generator=generator)
    values = torch.randn(first.nnz, generator=generator)
    held = Pattern.from_index(first.shape, [tensor.clone() for tensor in first.index])

    def results(pattern):
        y = backend.forward(x, values, pattern, None, case)
        return [y, *backend.backward(grad, x, values, pattern, (True, True), case)]

    old = results(held)
    before = [tensor.data_ptr() for tensor in backend._lists.tensors(held.column)]
    needed = backend._list(held, case, backward=False).start[-1].item()
    for tensor, new in zip(held.index, second.index, strict=True):
        tensor.copy_(new)
    assert backend.rewrite([Change(held.column, second)]) == [True]
    after = [tensor.data_ptr() for tensor in backend._lists.tensors(held.column)]
    assert len(before) == 6
    assert before == after
    kept = backend._list(held, case, backward=False)
    assert isinstance(kept, kind)
    assert (kept.start[-1].item() > needed) == (kind is Strips)
    new = results(held)
    assert all(torch.equal(a, b) for a, b in zip(new, results(second), strict=True))
    assert not torch.equal(old[0], new[0])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (replace(CASE, device="cpu"), "cuda kernels read the memory of a CUDA device, the tensors are on cpu"),
        (
            replace(CASE, dtype=torch.float64),
            "cuda kernels store float32, bfloat16 or float16, the tensors are float64",
        ),
        (
            replace(CASE, input=(1 << 27, 4, 9, 8)),
            "sizes must stay below 2^27, got an input of shape (134217728, 4, 9, 8)",
        ),
        (
            replace(CASE, shape=(6, 4, 70, 70), input=(1, 4, 80, 80)),
            "one channel of what a kernel of (70, 70) reaches does not fit in shared memory",
        ),
        (CASE, None),
    ],
)
def test_refusals_word_for_word(backend, case, words):  # noqa: ARG001  built with CUDA
    assert CudaBackend().refuse(case) == words


def test_refuses_where_it_was_not_built(backend, binding, monkeypatch):
    monkeypatch.setattr(binding, "built_with_cuda", False)
    reason = backend.refuse(CASE)
    assert reason == "fedsparse was built without CUDA; put nvcc on PATH, set FEDSPARSE_CUDA=on and build it again"


def test_a_failed_launch_is_reported(backend, binding, monkeypatch):
    monkeypatch.setattr(binding, "cuda_to_lines", lambda *_: 9)
    words = r"^cuda_to_lines failed with status 9: invalid configuration argument$"
    with pytest.raises(BackendError, match=words):
        backend.forward(
            torch.ones(1, 4),
            torch.ones(0),
            Pattern.from_mask(torch.zeros(2, 4, dtype=torch.bool)),
            None,
            Case((2, 4), (1, 4), 0),
        )


# ---- on a device


class OnDevice(ComputesOnDevice, CudaBackend):
    pass


@pytest.fixture
def device_backend():
    kernels("cuda")
    with plain_products():  # the search for the largest gradients may fall back to dense products
        yield OnDevice()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_agrees_with_float64(device_backend, rng):
    for product in product_cases(rng, 150):
        check_backend(device_backend, product)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", STORED)
def test_a_device_stores_16_bits_and_sums_32(device_backend, rng, dtype):
    for product in product_cases(rng, 60, dtype=dtype):
        check_products(device_backend, product, tolerance=STORED[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, *STORED])
def test_a_device_computes_layers_of_full_size(device_backend, dtype):
    """Many tiles, slabs and blocks of rows, a batch that fills no line, more taps than a warp stages."""
    generator = torch.Generator().manual_seed(5)
    sizes = [
        ((128, 96, 3, 3), (37, 96, 19, 17), Geometry((1, 1), (1, 1)), 0.1),
        ((192, 128, 3, 3), (40, 128, 16, 16), Geometry((2, 2), (1, 1)), 0.05),
        ((256, 200, 1, 1), (33, 200, 14, 14), Geometry(), 0.3),
        ((1000, 1200), (129, 1200), None, 0.1),
    ]
    for shape, size, geometry, density in sizes:
        pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < density)
        product = ProductCase(Case(shape, size, pattern.nnz, geometry, dtype), pattern, True, 3)
        check_products(device_backend, product, tolerance=STORED.get(dtype, 2e-6))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", STRUCTURED)
def test_a_device_multiplies_structured_weights(device_backend, name):
    check_products(device_backend, STRUCTURED[name].product, tolerance=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_gives_the_same_bits_twice(device_backend, rng):
    def results(product: ProductCase) -> list[torch.Tensor]:
        x, values, bias, grad = product.operands()
        y = device_backend.forward(x, values, product.pattern, bias, product.case)
        return [y, *device_backend.backward(grad, x, values, product.pattern, (True, True), product.case)]

    for product in product_cases(rng, 30):
        assert all(torch.equal(a, b) for a, b in zip(results(product), results(product), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, *STORED])
def test_lines_on_a_device(device_backend, generator, dtype):  # noqa: ARG001  built with CUDA
    for batch, size in ((1, 1), (7, 32), (9, 33), (17, 100), (3, 5000)):
        x = torch.randn(batch, size, generator=generator).to("cuda", dtype)
        lines = cuda_module._to_lines(x)
        padded = torch.zeros(-(-batch // 8) * 8, size, dtype=dtype, device="cuda")
        padded[:batch] = x
        assert torch.equal(lines, padded.view(-1, 8, size).transpose(1, 2))
        assert torch.equal(cuda_module._from_lines(lines, (batch, size)), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch", [3, 8])
def test_captured_products_follow_new_lists(device_backend, batch, generator):  # noqa: ARG001  built with CUDA
    """Forward and both gradients in one graph, in both layouts; the pattern is overwritten between two replays."""
    backend, case = CudaBackend(), replace(CASE, input=(batch, *CASE.input[1:]))
    x, grad = (torch.randn(size, generator=generator).cuda() for size in (case.input, case.output))
    first = Pattern.from_mask(torch.rand(6, 4, 3, 3, generator=generator) < 0.3)
    second = Pattern.from_mask(first.mask().roll(1, 0))
    values, case = torch.randn(first.nnz, generator=generator).cuda(), replace(case, nnz=first.nnz)
    held = Pattern.from_index(first.shape, [tensor.cuda() for tensor in first.index])

    def results(pattern):
        y = backend.forward(x, values, pattern, None, case)
        return [y, *backend.backward(grad, x, values, pattern, (True, True), case)]

    wanted = results(held), results(second.to("cuda:0"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(held)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[0], strict=True))
    for tensor, new in zip(held.index, second.index, strict=True):
        tensor.copy_(new)
    assert backend.rewrite([Change(held.column, second)]) == [True]
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted[1], strict=True))
