"""A network that prunes its activations on a device, with the Triton kernels for everything that it holds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.backends import activation, device_activation, device_norms
from fedsparse.backends.device_activation import DevicePacked, DeviceShared
from fedsparse.blocked import leave_blocked
from fedsparse.ops import held
from tests.kernels.device import DEVICE, INTERPRETED

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def forms(monkeypatch):
    """Types of what products keep; for the interpreter, main memory is a device."""
    if INTERPRETED:
        monkeypatch.setattr(device_norms, "available", lambda _: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (activation, device_activation):
        monkeypatch.setattr(module, "kernels_for", lambda _: device_activation.TRITON)
    found = []
    keep = held.keep
    monkeypatch.setattr(held, "keep", lambda *args: found.append(keep(*args)) or found[-1])
    return found


class Net(nn.Module):
    """Behind each other a norm and a ReLU, a norm and a sum, and a ReLU alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 3, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        x = F.relu(self.norms[0](self.a(x)), inplace=True)
        return self.c(F.relu(self.norms[1](self.b(x)) + x))


@pytest.mark.usefixtures("forms")
def test_fused_norms_train_as_torchs(generator):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    plain, x = copy.deepcopy(model), torch.randn(3, 2, 9, 8, generator=generator).to(DEVICE)
    fs.nn.fuse_norms(model)
    results = []
    for one in (model, plain):
        y = one(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in one.parameters()), *one.buffers()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("keep", "dtype"), [(1.0, None), (0.4, None), (0.4, torch.bfloat16)])
def test_trains_as_torch_does(keep, dtype, forms, generator):
    torch.manual_seed(0)
    model = leave_blocked(fs.sparsify(Net(), 0.5, distribution="uniform", exclude="none")).to(DEVICE)
    fs.set_backend(model, "masked")
    plain, x = copy.deepcopy(model), torch.randn(3, 2, 9, 8, generator=generator).to(DEVICE)
    fs.nn.prune_activations(model, keep, dtype=dtype)
    gradients = []
    for one in (model, plain):
        y = one(x)
        y.square().sum().backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()} | {"y": y.detach()})
    assert [type(form) for form in forms] == [DevicePacked, DeviceShared, DevicePacked]
    for name, truth in gradients[1].items():
        if "values" in name and keep < 1:
            continue
        error = (gradients[0][name] - truth).norm()
        assert error <= (2e-2 if dtype else 1e-4) * truth.norm() + 1e-3, (name, float(error))
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
