"""Functions of autograd that would lose the history of blocked activations."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fedsparse as fs
from fedsparse.blocked import leave_blocked
from fedsparse.errors import BackendError


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Between(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.inner, self.last = (nn.Conv2d(c, 8, 3) for c in (3, 8, 8))
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self, self.first(x)))


def squared(_model, x):
    return Square.apply(x)


def checkpointed(model, x):
    return checkpoint(model.inner, x, use_reentrant=True)


def observed(_model, x):
    with torch.no_grad():
        x.mean((2, 3)) + x.relu().mean((2, 3))
    return x


def sparse(middle):
    model = fs.sparsify(Between(middle), 0.3, exclude="none")
    fs.set_backend(model, "cpu")
    return model


@pytest.mark.parametrize("middle", [squared, checkpointed])
def test_a_function_that_would_lose_gradients_is_refused(middle, generator):
    x = torch.randn(4, 3, 9, 9, generator=generator)
    with pytest.raises(BackendError, match="leave_blocked"):
        sparse(middle)(x)
    model = leave_blocked(sparse(middle))
    model(x).square().sum().backward()
    assert model.first.values.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's checkpoint wonders
@pytest.mark.parametrize("middle", [squared, checkpointed])
def test_without_gradients_nothing_can_be_lost(middle, generator):
    x = torch.randn(4, 3, 9, 9, generator=generator)
    model = sparse(middle)
    with torch.no_grad():
        y = model(x)
    torch.testing.assert_close(y, leave_blocked(model)(x).detach(), rtol=1e-4, atol=1e-5)


def test_looking_without_gradients_is_fine(generator):
    model = sparse(observed)
    model(torch.randn(4, 3, 9, 9, generator=generator)).square().sum().backward()
    assert model.first.values.grad.abs().sum() > 0
