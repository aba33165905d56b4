"""The record of a run names every change of layout, and where and why it happened."""

import threading

import pytest
import torch
from torch import Tensor, nn

import fedsparse as fs
from fedsparse.blocked import Blocked, leave_blocked
from fedsparse.blocked.trace import ASKED, END, Conversion, current, traced


def conv(inputs: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, 3, padding=1)


def sparse(model: nn.Module) -> nn.Module:
    fs.sparsify(model, 0.3, distribution="uniform", exclude="none")
    fs.set_backend(model, "cpu")
    return model


def hooks_of(model: nn.Module) -> list[tuple[int, int, int]]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called")
    return [tuple(len(getattr(module, kind)) for kind in kinds) for module in model.modules()]  # type: ignore[misc]


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, 1).values


X = torch.zeros(2, 3, 6, 6)


def test_a_function_without_a_rule_is_named_with_its_module() -> None:
    model = sparse(nn.Sequential(conv(3, 4), nn.ReLU(), nn.Sequential(Sorted()), conv(4, 5)))
    with traced(model) as trace:
        assert current() is trace
        model(X)
    assert current() is None
    assert trace.conversions == [
        Conversion(True, "0", (2, 3, 6, 6)),
        Conversion(False, "2.0", (2, 4, 6, 6), "no rule covers torch.sort", "torch.sort"),
        Conversion(True, "3", (2, 4, 6, 6)),
        Conversion(False, "", (2, 5, 6, 6), END),
    ]
    assert {path: case.output for path, case in trace.products.items()} == {"0": (2, 4, 6, 6), "3": (2, 5, 6, 6)}
    assert [str(c) for c in trace.conversions[1:]] == [
        "leaves at 2.0 (2x4x6x6): no rule covers torch.sort",
        "enters at 3 (2x4x6x6)",
        "leaves at the model itself (2x5x6x6): end of the network",
    ]


def test_arguments_without_a_rule_and_properties_are_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mT + x.mean(1, keepdim=True)

    model = sparse(nn.Sequential(conv(3, 4), Odd()))
    with traced(model) as trace:
        model(X)
    # The detached tensor is another one, so both leave. A mean over channels has none, over pixels it has a rule.
    found = [(c.module, c.function) for c in trace.conversions if not c.enters]
    assert found == [("1", "torch.Tensor.mT"), ("1", "torch.Tensor.mean")]


def test_a_tensor_leaves_once_however_often_it_is_used() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values + x.cumsum(1)

    model = sparse(nn.Sequential(conv(3, 4), Twice()))
    with traced(model) as trace:
        model(X)
    assert [c.function for c in trace.conversions if not c.enters] == ["torch.Tensor.sort"]


def test_who_asks_for_numbers() -> None:
    model = sparse(nn.Sequential(conv(3, 4), nn.ReLU()))

    def look(_module: nn.Module, _args: object, output: Tensor) -> None:
        assert isinstance(output, Blocked)
        output.plain()

    model[0].register_forward_hook(look)
    with traced(model) as trace:
        model(X)
    assert trace.conversions[1] == Conversion(False, "0", (2, 4, 6, 6), ASKED)


def test_the_end_is_that_of_the_outermost_network() -> None:
    body = sparse(nn.Sequential(sparse(nn.Sequential(conv(3, 4), nn.ReLU())), conv(4, 5)))
    model = nn.Sequential(nn.Identity(), body, nn.ReLU())
    with traced(model) as trace:
        model(X)
    assert [(c.enters, c.module, c.why) for c in trace.conversions] == [(True, "1.0.0", ""), (False, "1", END)]


def test_nothing_is_recorded_where_nothing_is_blocked() -> None:
    for model, x in (
        (leave_blocked(sparse(nn.Sequential(conv(3, 4), conv(4, 4)))), X),
        (fs.sparsify(nn.Sequential(conv(3, 4), conv(4, 4)), 0.3, exclude="none").double(), X.double()),
    ):
        with traced(model) as trace:
            model(x)
        assert trace.conversions == []
        assert trace.products == {}


def test_nothing_is_left_behind() -> None:
    model = sparse(nn.Sequential(conv(3, 4), nn.Sequential(Sorted()), conv(4, 5)))
    before = hooks_of(model)
    with pytest.raises(fs.ShapeError), traced(model) as trace:
        model(torch.zeros(2, 4, 6, 6))
    assert trace.running == []
    assert current() is None
    assert hooks_of(model) == before


def test_a_failure_that_the_model_catches_does_not_shift_places() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right, self.sorted = conv(7, 4), conv(3, 4), Sorted()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except fs.ShapeError:
                return self.sorted(self.right(x))

    model = sparse(Careful())
    with traced(model) as trace:
        model(X)
    assert [c.module for c in trace.conversions] == ["right", "sorted"]


def test_other_threads_write_nothing() -> None:
    model = sparse(nn.Sequential(conv(3, 4), Sorted()))
    with traced(model) as trace:
        worker = threading.Thread(target=model, args=(X,))
        worker.start()
        worker.join()
    assert trace.conversions == []
    assert trace.running == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_of_torchscript_count_as_their_parent() -> None:
    model = sparse(nn.Sequential(conv(3, 4), nn.Sequential(torch.jit.script(nn.ReLU())), conv(4, 5)))
    with traced(model) as trace:
        model(X)
    assert [c.module for c in trace.conversions] == ["0", "1", "2", ""]
