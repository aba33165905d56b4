"""One test for main memory and for a GPU: what runs here on a processor is what runs there on a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
import torch

from fedsparse import _native
from tests.cuda import shim

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
# Our own kernels on each kind of device.
KERNELS = {"cpu": "cpu", "cuda": "cuda"}


def kernels(device: str) -> str:
    """Backend of our kernels there; skips where they were not built."""
    if device == "cuda" and not _native.extension().built_with_cuda:
        pytest.skip("the extension was built without CUDA")
    return KERNELS[device]


@pytest.fixture(scope="session")
def binding() -> ModuleType:
    """The compiled module with its CUDA part, every kernel of which runs on the CPU."""
    if reason := shim.missing():
        pytest.skip(reason)
    pytest.importorskip("pybind11", reason="the binding needs pybind11")
    path, whole = str(shim.build_binding()), ModuleType("with_cuda")
    loader = ExtensionFileLoader("fedsparse_shim", path)
    part = module_from_spec(spec_from_file_location("fedsparse_shim", path, loader=loader))
    loader.exec_module(part)
    whole.__dict__.update({**vars(_native.extension()), **vars(part)})
    return whole


def pretend(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the kernels of `native`, built for the CPU, take tensors in main memory for those of a device."""
    monkeypatch.setattr(_native, "extension", lambda: native)
    monkeypatch.setattr(_native, "_stream", lambda _: 0)
    monkeypatch.setattr(_native, "on_device", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def where(request, monkeypatch) -> str:
    """A device whose tensors the CUDA kernels take: a real one, or main memory, for which `binding` has to be there."""
    if request.param == "cuda":
        kernels("cuda")
        return "cuda:0"
    pretend(request.getfixturevalue("binding"), monkeypatch)
    return "cpu"


@contextmanager
def plain_products() -> Iterator[None]:
    """Inside, torch multiplies on a GPU as the textbook says: no TF32, and no Winograd, which divides by three."""
    flags = torch.backends.cudnn
    before = flags.enabled, flags.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    flags.enabled = flags.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        flags.enabled, flags.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class ComputesOnDevice:
    """Takes operands in main memory and computes on the device, so that one check serves both."""

    def refuse(self, case):
        return super().refuse(replace(case, device="cuda"))

    def forward(self, x, values, pattern, bias, case):
        bias = None if bias is None else bias.cuda()
        return super().forward(x.cuda(), values.cuda(), pattern.to("cuda:0"), bias, case).cpu()

    def backward(self, grad, x, values, pattern, want, case):
        found = super().backward(grad.cuda(), x.cuda(), values.cuda(), pattern.to("cuda:0"), want, case)
        return type(found)(*(None if tensor is None else tensor.cpu() for tensor in found))

    def topk_pruned(self, grad, x, pattern, k, case):
        return tuple(t.cpu() for t in super().topk_pruned(grad.cuda(), x.cuda(), pattern.to("cuda:0"), k, case))
