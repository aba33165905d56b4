"""Pruned activations by the CUDA kernels: on the CPU through the binding, and on the device where there is one."""

import copy
from contextlib import nullcontext

import pytest
import torch

import fedsparse as fs
from fedsparse import _native
from fedsparse.backends import device_activation, device_norms
from fedsparse.backends.activation import PlainPacked, Pruning, keep, plain_pack, plain_unpack, restore
from fedsparse.backends.device_activation import DevicePacked, DeviceShared
from fedsparse.backends.device_norms import Norm
from tests.plain_device import plain_norms

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SHAPES = [(5, 3, 9, 7), (33, 40), (3, 2, 40, 40), (1, 600)]


def check(x, pruning):
    """Bits, values and the restored tensor are those of plain torch."""
    packed, plain = keep(x, pruning), plain_pack(x, pruning)
    assert isinstance(packed, DevicePacked)
    count = int(packed.starts[-1])
    assert torch.equal(packed.bits.view(torch.uint8)[: len(plain.bits)], plain.bits)
    assert torch.equal(packed.values[:count], plain.values)
    found = restore(packed, tuple(x.shape), x.dtype)
    assert found.dtype == x.dtype
    assert torch.equal(found, plain_unpack(plain, tuple(x.shape), x.dtype))
    return packed


@pytest.mark.parametrize("rule", ["tile", "global"])
@pytest.mark.parametrize("shape", SHAPES)
def test_means_what_plain_torch_does(where, shape, rule, generator):
    x = torch.randn(shape, generator=generator).to(where)
    for share in (0.01, 0.3, 1.0):
        packed = check(x, Pruning(share, rule))
        rows = 1 if rule == "global" else shape[0]
        assert len(packed.values) == rows * Pruning(share).count(x.numel() // rows)


@pytest.mark.parametrize("rule", ["tile", "global"])
def test_sixteen_bits_and_strides(where, rule, generator):
    x = torch.randn(6, 11, 5, generator=generator).to(where).transpose(1, 2)
    check(x, Pruning(0.4, rule, torch.bfloat16))
    for dtype in (torch.bfloat16, torch.float16):
        assert check(x.to(dtype), Pruning(0.4, rule)).values.dtype == dtype


def test_keeping_everything_takes_no_room_for_zeros(where, generator):
    x = torch.randn(4, 300, generator=generator).relu().to(where)
    packed = check(x, Pruning(1.0))
    assert len(packed.values) == int((x != 0).sum())


def test_a_capture_reads_no_count(where, generator, monkeypatch):
    """A graph may not wait for the device: there is room for all."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.randn(4, 300, generator=generator).relu().to(where)
    assert len(check(x, Pruning(1.0)).values) == x.numel()


@pytest.mark.parametrize("x", [torch.zeros(3, 4, dtype=torch.float64), torch.zeros(0, 4)], ids=["float64", "empty"])
def test_what_the_kernels_do_not_take_is_left_to_torch(where, x):
    assert device_activation.kernels_for(x.to(where)) is None
    if where != "cpu" or x.dtype == torch.float64:
        assert isinstance(keep(x.to(where), Pruning(0.5)), PlainPacked)


def test_main_memory_and_missing_kernels(monkeypatch):
    """Without a CUDA build Triton takes the tensors of a device, and torch where that is missing too."""
    x = torch.zeros(3, 4)
    assert device_activation.kernels_for(x) is None

    class Elsewhere:
        dtype, device = torch.float32, torch.device("cuda")

        def numel(self):
            return 12

    monkeypatch.setattr(_native, "on_device", lambda _: False)
    for installed, wanted in ((True, device_activation.TRITON), (False, None)):
        monkeypatch.setattr(_native, "has_triton", lambda installed=installed: installed)
        assert device_activation.kernels_for(Elsewhere()) is wanted


@pytest.mark.parametrize("rule", ["tile", "global"])
def test_a_pruned_layer_trains_alike(where, rule, generator):
    """Outputs and gradients of a layer are those that plain torch gives, whoever packs the input."""
    model = fs.sparsify(torch.nn.Sequential(torch.nn.Linear(24, 10)), 0.4, exclude="none").to(where)
    fs.set_backend(model, "reference")
    fs.nn.prune_activations(model, 0.3, rule=rule)
    plain, x = copy.deepcopy(model), torch.randn(7, 24, generator=generator).to(where)

    def gradients(one, given):
        y = one(given)
        y.square().sum().backward()
        return [y.detach(), one[0].values.grad, one[0].bias.grad]

    found = gradients(model, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsparse.ops.held.keep", plain_pack)
        wanted = gradients(plain, x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", ["tile", "global"])
@pytest.mark.parametrize("rounds", [False, True], ids=["input", "rounded"])
def test_what_a_norm_holds_is_not_packed(where, rounds, rule, generator):
    if where != "cpu":
        pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")
    source = torch.randn(5, 3, 9, 7, generator=generator).to(where)
    mean, rstd, weight, bias = torch.rand(4, 3, generator=generator).to(where)
    rounded = torch.empty_like(source, dtype=torch.bfloat16) if rounds else None
    with plain_norms() if where == "cpu" else nullcontext():
        kernels = device_norms.kernels_for(source)
        x = kernels.norm(Norm(source, mean, rstd, weight, bias), torch.float32, rounded, relu=True)
        norm = Norm(rounded if rounds else source, mean, rstd, weight, bias)
        again = kernels.norm(norm, torch.float32, None, relu=True)
        shared = keep(x, Pruning(0.3, rule), norm)
        found = restore(shared, tuple(x.shape), x.dtype)
    assert isinstance(shared, DeviceShared)
    assert shared.held is norm.held
    assert torch.equal(found, plain_unpack(plain_pack(again, Pruning(0.3, rule)), tuple(x.shape), x.dtype))
    torch.testing.assert_close(again, x, rtol=0.02, atol=0.02)
