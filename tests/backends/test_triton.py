"""The triton backend: its refusals and lists here, its numbers on a device; tests/kernels interprets its kernels."""

import gc
import sys
from dataclasses import replace

import pytest
import torch

from fedsparse.backends import Case, Geometry
from fedsparse.backends import triton as triton_module
from fedsparse.backends.triton import TritonBackend
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_backend, product_cases
from tests.devices import ComputesOnDevice
from tests.kernels.masks import block_mask, vector_mask

CASE = Case((6, 4, 3, 3), (3, 4, 9, 8), 30, Geometry(padding=(1, 1)), device="cuda")
REFUSALS = [
    (replace(CASE, device="cpu"), "triton kernels read the memory of a CUDA device, the tensors are on cpu"),
    (replace(CASE, dtype=torch.float64), "triton kernels store float32, bfloat16 or float16, the tensors are float64"),
    (
        replace(CASE, input=(1 << 23, 4, 9, 8)),
        "tensors must stay below 2^31 numbers, got an input of shape (8388608, 4, 9, 8)",
    ),
    (
        replace(CASE, shape=(6, 4, 32, 1), input=(1, 4, 40, 8)),
        "kernels reach at most 31 pixels either way, got (32, 1)",
    ),
    (CASE, None),
]


@pytest.mark.parametrize(("case", "words"), REFUSALS)
def test_refusals_word_for_word(case, words):
    pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")
    assert TritonBackend().refuse(case) == words


def test_refuses_without_triton(monkeypatch):
    monkeypatch.setattr(triton_module, "find_spec", lambda _: None)
    words = "Triton is not installed; get it with `pip install 'fedsparse[triton]'`"
    assert TritonBackend().refuse(CASE) == words


def test_importing_the_backend_needs_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "fedsparse.backends.triton")
    import fedsparse.backends.triton  # noqa: F401


def test_lists_are_built_once_and_die_with_their_pattern():
    backend, pattern = TritonBackend(), Pattern.from_mask(block_mask((16, 16, 3, 3), 16, 0.5))
    case = Case(pattern.shape, (3, 16, 9, 8), pattern.nnz, Geometry(padding=(1, 1)))
    first = [backend._tiles(pattern, case, transposed=transposed) for transposed in (False, True)]
    # An op sees the index tensors, not the pattern that they came from; another batch and size change nothing.
    again, other = Pattern.from_index(pattern.shape, pattern.index), replace(case, input=(8, 16, 5, 5))
    assert [backend._tiles(again, other, transposed=t) for t in (False, True)] == first
    assert first[0].rows == first[1].rows == 16
    assert len(backend._lists) == 1
    del pattern, again, first
    gc.collect()
    assert len(backend._lists) == 0


def test_channels_that_share_no_taps_are_united():
    pattern = Pattern.from_mask(vector_mask((32, 40), 32, 0.3))
    case, backend = Case(pattern.shape, (3, 40), pattern.nnz), TritonBackend()
    assert backend._tiles(pattern, case, transposed=False).rows == 32
    united = backend._tiles(pattern, case, transposed=True)
    assert (united.rows, united.order is None) == (16, False)


# ---- on a device

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class OnDevice(ComputesOnDevice, TritonBackend):
    pass


def structured(dtype=torch.float32):
    """A linear layer and convolutions of ResNet sizes under vector and block masks."""
    same, strided = Geometry(padding=(1, 1)), Geometry((2, 2), (1, 1))
    for number, (mask, size, geometry) in enumerate(
        [
            (block_mask((256, 512), 32, 0.2), (65, 512), None),
            (vector_mask((128, 300), 64, 0.3), (33, 300), None),
            (block_mask((64, 64, 3, 3), 16, 0.2), (5, 64, 15, 17), same),
            (vector_mask((128, 64, 3, 3), 32, 0.1), (4, 64, 16, 16), strided),
            (vector_mask((64, 16, 1, 1), 16, 0.5), (9, 16, 8, 8), Geometry((2, 2))),
        ]
    ):
        pattern = Pattern.from_mask(mask)
        yield ProductCase(Case(pattern.shape, size, pattern.nnz, geometry, dtype), pattern, True, number)


def results(backend, product):
    x, values, bias, grad = product.operands()
    y = backend.forward(x, values, product.pattern, bias, product.case)
    return [y, *backend.backward(grad, x, values, product.pattern, (True, True), product.case)]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("rows", [1, 16])
def test_a_device_agrees_with_float64(rows, rng):
    torch.backends.cudnn.allow_tf32 = False  # the search for the largest gradients uses dense products
    for product in product_cases(rng, 60):
        check_backend(OnDevice(rows), product)


@pytest.mark.gpu
@gpu
def test_a_device_agrees_with_float64_on_tiles():
    torch.backends.cudnn.allow_tf32 = False
    for product in structured():
        check_backend(OnDevice(), product)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_device_rounds_sixteen_bits_once(dtype):
    for product in structured(dtype):
        truth, mask = product.truth(product.operands()), product.pattern.mask()
        wanted = (truth.y, truth.grad_x, truth.grad_weight[mask])
        for got, exact in zip(results(OnDevice(), product), wanted, strict=True):
            assert float((got.double() - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("kernel", ["tile_product", "tile_sampled", "element_product", "element_sampled"])
def test_every_config_gives_the_same_bits(kernel):
    """What may be tuned must not matter: measured times differ from run to run."""
    tuner = getattr(__import__(f"fedsparse.kernels.{kernel}", fromlist=["_"]), f"_{kernel}_kernel")
    configs, backend = list(tuner.configs), OnDevice(1 if kernel.startswith("element") else None)
    for product in structured():
        found = []
        try:
            for config in configs:
                tuner.configs = [config]
                found.append(results(backend, product))
        finally:
            tuner.configs = configs
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)), product
