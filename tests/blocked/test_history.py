"""Functions of autograd that somebody wrote, inside a network that keeps its activations blocked."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import fedsparse as fs
from fedsparse.blocked import Blocked, leave_blocked
from fedsparse.errors import BackendError


class Square(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Cube(Function):
    """In the newer style, and of functions that have no rule."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.pow(3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, output = ctx.saved_tensors
        return 3 * torch.where(x == 0, x, output / x) * grad


class Reverse(Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, as_view: bool) -> Tensor:
        return x.view_as(x) if as_view else x

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -grad, None


class InPlace(Function):
    """Changes its argument, by a function with a rule and by one without."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, doubled: bool) -> Tensor:
        ctx.mark_dirty(x)
        ctx.gate = None if doubled else (x > 0).float()
        return x.mul_(2) if doubled else x.relu_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * (2 if ctx.gate is None else ctx.gate), None


class Gated(Function):
    """Two arguments and two results, one of them a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.sigmoid(x) * gain
        ctx.save_for_backward(x, gain)
        return y, x.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_sum: Tensor) -> tuple[Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * gain * s * (1 - s) + of_sum, (grad * s).sum()


def call(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


class Between(nn.Module):
    """A convolution, `middle`, another convolution."""

    def __init__(self, middle: "Middle") -> None:
        super().__init__()
        self.first, self.inner = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8))
        self.last: nn.Module = nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.gain = nn.BatchNorm2d(8), nn.Parameter(torch.tensor(1.5))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.middle(self, self.first(x)))
        return y


Middle = Callable[[Between, Tensor], Tensor]


def gated(model: Between, x: Tensor) -> Tensor:
    y, total = call(Gated, x, model.gain)
    return y + 0.01 * total


def observed(_model: Between, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.mean((2, 3)) + x.relu().mean((2, 3)) + x.cumsum(1).mean((2, 3))
    return x


def observed_norm(model: Between, x: Tensor) -> Tensor:
    return observed(model, model.norm(x)) + x


def cut_in_place(model: Between, x: Tensor) -> Tensor:
    """As in torch: other numbers, the same history."""
    x = model.norm(x)
    with torch.no_grad():
        x.relu_()
    return x.tanh()


MIDDLES: dict[str, Middle] = {
    "function": lambda _, x: call(Square, x),
    "newer style": lambda _, x: call(Cube, x),
    "argument returned": lambda _, x: call(Reverse, x, False),
    "view returned": lambda _, x: call(Reverse, x, True),
    "argument changed": lambda _, x: call(InPlace, x, True),
    "argument changed by a rule": lambda _, x: call(InPlace, x, False),
    "several": gated,
    "checkpoint": lambda m, x: checkpoint(m.inner, x, use_reentrant=True),
    "behind a norm": lambda m, x: call(Square, m.norm(x)),
    "behind a ReLU": lambda m, x: call(Square, F.relu(m.norm(x))) + x,
    "behind a ReLU in place": lambda m, x: call(Square, F.relu(m.norm(x), inplace=True)),
    "behind a sum": lambda m, x: call(Reverse, m.norm(x) + x, False) + x,
    "behind a sum in place": lambda m, x: call(Square, m.norm(x).add_(x)),
    "one after the other": lambda _, x: call(Cube, call(Square, call(Square, x).sigmoid())),
    "beside rules": lambda m, x: call(Square, x) + m.inner(x) * call(Reverse, m.norm(x), False) + x.cumsum(1),
    "looking": observed,
    "looking at a norm": observed_norm,
    "changed where nothing is recorded": cut_in_place,
}


def sparse(middle: Middle) -> Between:
    torch.manual_seed(0)
    model = Between(middle)
    fs.sparsify(model, 0.4, exclude="none")
    fs.set_backend(model, "cpu")
    return model


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    assert type(y) is Tensor
    y.square().sum().backward()
    assert x.grad is not None
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's checkpoint wonders
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MIDDLES)
def test_functions_of_others_do_what_they_do_between_ordinary_layers(name: str, training: bool) -> None:
    model = sparse(MIDDLES[name]).train(training)
    ordinary = leave_blocked(copy.deepcopy(model))
    x = torch.randn(5, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    wanted, found = outcome(ordinary, x), outcome(model, x)
    assert found.keys() == wanted.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), ordinary(x), rtol=1e-4, atol=1e-4)


def test_nothing_is_recorded_that_nobody_wants() -> None:
    """Neither a norm nor a sum that is put off and computed where gradients are on again."""
    seen: list[bool] = []

    def middle(model: Between, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = [model.norm(x), x + x, F.relu(F.relu(model.norm(x))), x.relu() + model.norm(x)]
        seen.extend(t.requires_grad or t.cumsum(1).requires_grad for t in found)
        return model.norm(x)

    model = sparse(middle)
    model.last = nn.Identity()
    assert model(torch.randn(5, 3, 9, 9)).requires_grad
    assert seen == [False] * 4
    with torch.no_grad():
        assert not model(torch.randn(5, 3, 9, 9)).requires_grad


def test_what_rules_cover_stays_in_the_layout() -> None:
    seen: list[bool] = []

    def middle(_model: Between, x: Tensor) -> Tensor:
        y: Tensor = call(Square, x)
        seen.extend(isinstance(t, Blocked) and t.node is not None for t in (x, y))
        return y

    sparse(middle)(torch.randn(5, 3, 9, 9)).sum().backward()
    assert seen == [True, True]


def test_what_a_function_has_saved_cannot_be_changed_in_place() -> None:
    def middle(_model: Between, x: Tensor) -> Tensor:
        y: Tensor = call(Square, x)
        return y + x.relu_()

    with pytest.raises(BackendError, match="changed in place"):
        sparse(middle)(torch.randn(5, 3, 9, 9))


def test_an_activation_cannot_be_changed_past_torchs_functions() -> None:
    def middle(_model: Between, x: Tensor) -> Tensor:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            return x.mul_(2)

    with pytest.raises(BackendError, match=r"leave_blocked\(model\)"):
        sparse(middle)(torch.randn(5, 3, 9, 9))
