"""Networks on a device that prune their activations, or fuse their norms: batch norms and ReLUs that hold little.

Here they run in main memory, with plain torch for the kernels of a device; where there is a device, on that as well.
"""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import fedsparse as fs
from fedsparse.backends.activation import Pruning
from fedsparse.blocked import leave_blocked
from fedsparse.blocked.deferred import Deferred
from fedsparse.blocked.device import Frugal
from fedsparse.blocked.saving import begin, end
from fedsparse.errors import BackendError, DoubleBackwardError
from fedsparse.nn import fuse_norms, prune_activations
from tests.devices import CUDA, plain_products
from tests.plain_device import plain_device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request):
    if request.param == "cuda":
        pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")
        with plain_products():
            yield "cuda"
    else:
        with plain_device():
            yield "cpu"


@pytest.fixture
def calls():
    """What plain torch is asked for."""
    with plain_device() as kernels:
        yield kernels.calls


WAYS = {"pruned": lambda model: prune_activations(model, 1.0), "fused": fuse_norms}


@pytest.fixture(params=WAYS)
def asked(request):
    """Makes a model leave its norms to the kernels, which changes no numbers."""
    return WAYS[request.param]


@pytest.fixture
def frugal():
    """The functions of a network that is running, called without one."""
    begin(Pruning(0.5))
    with plain_device(), Frugal():
        yield
    end()


class Residual(nn.Module):
    """Norms and ReLUs out of place and in place, a projection, and a sum in place."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), norm(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 20, 3, 2, 1, bias=False), norm(20)
        self.conv2, self.bn2 = nn.Conv2d(20, 20, 3, padding=1), norm(20)
        self.project, self.bn3 = nn.Conv2d(12, 20, 1, 2, bias=False), norm(20)
        self.fc = nn.Linear(20, 7)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.project(x))
        return self.fc(self.relu(y).mean((2, 3)))


class Odd(nn.Module):
    """A norm whose result is used twice, a norm of a norm, a ReLU by method, and a norm nobody uses."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))

    def forward(self, x):
        x = self.norms[0](self.a(x))
        x = x.relu() + 0.1 * x
        y = self.norms[2](self.norms[1](self.b(x)))
        self.norms[3](x)
        torch.relu_(y)
        return self.c(y)[:, :4].flatten(1)


def perceptron():
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(243, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU()),
        nn.Linear(30, 8),
    )


NETWORKS = {
    "batch norm": lambda: Residual(nn.BatchNorm2d),
    "cumulative": lambda: Residual(lambda n: nn.BatchNorm2d(n, momentum=None)),
    "not affine": lambda: Residual(lambda n: nn.BatchNorm2d(n, affine=False)),
    "not tracking": lambda: Residual(lambda n: nn.BatchNorm2d(n, track_running_stats=False)),
    "no norm": lambda: Residual(lambda _: nn.Identity()),
    "odd": Odd,
    "perceptron": perceptron,
}


def built(name, device="cpu"):
    torch.manual_seed(5)
    model = fs.sparsify(NETWORKS[name](), 0.5, distribution="uniform", exclude="none")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    fs.set_backend(model, "masked")
    return leave_blocked(model).to(device)


def pictures(device="cpu", batch=6):
    return torch.randn(batch, 3, 9, 9, generator=torch.Generator().manual_seed(0)).to(device)


def outcome(model, x):
    """Output, gradients, and buffers after one step."""
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    running = {name: b.clone() for name, b in model.named_buffers() if "running" in name or "tracked" in name}
    return {"y": y.detach(), "x": x.grad, **found, **running}


def near(found, wanted, tolerance=1e-4):
    assert found.keys() == wanted.keys()
    for name, truth in wanted.items():
        error = (found[name].double() - truth.double()).norm()
        assert error <= tolerance * truth.double().norm() + 1e-4, (name, float(error))


# ---- the same numbers
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_activations_give_what_torch_gives(name, asked, device):
    model = built(name, device)
    plain = copy.deepcopy(model)
    asked(model)
    for _ in range(2):  # the second time with running statistics of the first
        found, wanted = outcome(model, pictures(device)), outcome(plain, pictures(device))
        assert type(found["y"]) is Tensor
        near(found, wanted)


@pytest.mark.parametrize("rule", ["tile", "global"])
@pytest.mark.parametrize("name", ["batch norm", "no norm", "perceptron"])
def test_only_gradients_of_weights_change(name, rule, device):
    model = built(name, device)
    whole = outcome(copy.deepcopy(model), pictures(device))
    found = outcome(prune_activations(model, 0.1, rule=rule), pictures(device))
    near({key: found[key] for key in found if "values" not in key}, {k: whole[k] for k in whole if "values" not in k})
    changed = [key for key in found if "values" in key and (found[key] - whole[key]).norm() > 0.1 * whole[key].norm()]
    assert len(changed) == sum("values" in key for key in found)


@pytest.mark.parametrize("name", ["batch norm", "perceptron"])
def test_bfloat16_is_near(name, device):
    """Biases in front of norms have no gradient; what rounding makes of none is left out."""
    model = built(name, device)
    whole = outcome(copy.deepcopy(model), pictures(device))
    found = outcome(prune_activations(model, 1.0, dtype=torch.bfloat16), pictures(device))
    near({"y": found["y"]}, {"y": whole["y"]})
    some = [key for key, truth in whole.items() if truth.double().norm() > 1e-5]
    near({key: found[key] for key in some}, {key: whole[key] for key in some}, 0.06)


# ---- who computes
def test_what_is_computed_by_whom(calls):
    y = prune_activations(built("batch norm"), 0.5)(pictures())
    # Two ReLUs follow their norms; the third follows a sum of two, of which the second is computed before.
    assert calls == {"statistics": 4, "norm and relu": 2, "norm": 1, "norm, sum and relu": 1}
    y.sum().backward()
    # Three products read the two ReLUs of norms, which are not held.
    assert calls == {"statistics": 4, "norm and relu": 2 + 3, "norm": 1, "norm, sum and relu": 1}


UNDONE = {"pruned": lambda model: prune_activations(model, None), "fused": lambda model: fuse_norms(model, False)}


@pytest.mark.parametrize("way", ["evaluation", "no gradients", "whole", "part"])
@pytest.mark.parametrize("asked", WAYS)
def test_nothing_changes_elsewhere(asked, way, calls):
    model, x = WAYS[asked](built("batch norm")), pictures()
    if way == "whole":
        WAYS[asked](model.conv2)
        UNDONE[asked](model)
    if way == "part":
        UNDONE[asked](model)
        WAYS[asked](model.conv2)
    with torch.set_grad_enabled(way != "no gradients"):
        model.train(way != "evaluation")(x)
    assert not calls


class Watched(nn.Module):
    """A norm between looks at what it counts, and a counter of the network's own."""

    def __init__(self, momentum):
        super().__init__()
        self.norm, self.seen = nn.BatchNorm2d(3, momentum=momentum), []
        self.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.runs.add_(1)
        self.seen.append(int(self.runs))
        y = self.norm(self.norm(x))
        self.seen.append(int(self.norm.num_batches_tracked))
        self.runs.add_(1)
        return y


@pytest.mark.parametrize("momentum", [0.1, None], ids=["exponential", "cumulative"])
def test_batches_are_counted_by_the_norm(momentum, generator):
    x = torch.randn(4, 3, 5, 6, generator=generator, requires_grad=True)
    plain, model = Watched(momentum), fuse_norms(Watched(momentum))
    before = model.norm.num_batches_tracked._version
    with plain_device() as kernels:
        for _ in range(2):
            model(x)
    for _ in range(2):
        plain(x)
    # A cumulative average reads the count first, which then is torch's.
    assert kernels.counted == (4 if momentum else 0)
    assert model.seen == plain.seen == [1, 2, 3, 4]
    near(dict(model.named_buffers()), dict(plain.named_buffers()))
    assert model.norm.num_batches_tracked._version == before + 4


def test_what_is_counted_is_not_lost_in_a_norm_that_fails():
    model = fuse_norms(nn.Sequential(nn.BatchNorm1d(3)))
    with plain_device(), pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, requires_grad=True))
    assert int(model[0].num_batches_tracked) == 1  # as in torch


def test_norms_in_evaluation_inside_training(asked, calls):
    model = asked(built("batch norm"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model(pictures()).sum().backward()
    assert calls == {"relu": 3}


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 5, 3, requires_grad=True).transpose(1, 2),
        torch.randn(0, 3, 5, requires_grad=True),
        torch.randn(4, 3, 5),
    ],
    ids=["float64", "strides", "empty", "no gradient"],
)
def test_what_the_kernels_do_not_take_is_left_to_torch(x, frugal):
    del frugal
    y = torch.relu(x)
    assert "ReluBackward" in type(y.grad_fn).__name__ or not x.requires_grad
    if x.numel():
        assert type(F.batch_norm(x, None, None, training=True)) is Tensor


def test_torchs_own_refusals(frugal):
    del frugal
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable"):
        torch.relu_(x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(x[:1], None, None, training=True)
    view = (2 * x)[1:]
    assert torch.relu_(view) is view
    assert "Relu" not in type(torch.relu(input=2 * x).grad_fn).__name__.removeprefix("_Relu")


def test_sixteen_bit_inputs_with_wide_parameters(frugal):
    """As autocast leaves them to batch norm."""
    del frugal
    x = torch.randn(5, 3, 7).bfloat16().requires_grad_()
    weight, bias = torch.rand(2, 3).requires_grad_()
    mean, variance = torch.zeros(3), torch.ones(3)
    y = F.relu(F.batch_norm(x, mean, variance, weight, bias, True))
    wide = x.detach().float().requires_grad_()
    wanted = F.relu(F.batch_norm(wide.double(), None, None, weight.double(), bias.double(), True))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), wanted, rtol=1e-2, atol=1e-2)
    found, exact = (torch.autograd.grad(z.sum(), (t, weight)) for z, t in ((y, x), (wanted, wide)))
    assert (found[0].dtype, found[1].dtype) == (torch.bfloat16, torch.float32)
    for mine, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.float(), truth, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(mean, 0.1 * wide.detach().mean((0, 2)), rtol=1e-4, atol=1e-5)


# ---- a norm that waits
def waiting(scale=1.0):
    """A norm's input, and the norm."""
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight, bias = (scale * torch.tensor([1.0, -2.0, 0.5])).requires_grad_(), torch.ones(3).requires_grad_()
    mean, variance = torch.zeros(3), torch.ones(3)
    return x, mean, variance, weight, bias


class Twice(torch.autograd.Function):
    """Keeps the history itself, past torch's Python functions."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad + 0 * x


class Saves(torch.autograd.Function):
    """Saves its argument, which it does not look at."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.ones(())

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def _in_place(y):
    z = y.add_(1.0)
    assert z is y
    return y


def _in_place_relu(y):
    z = F.relu(y, inplace=True)
    assert z is y
    assert type(y) is Tensor
    return y * y


def _saved_by_another(y):
    kept = Twice.apply(y)
    return kept + y.relu() + y


def _watched(y):
    seen = weakref.ref(y)
    z = y + y.relu()
    y += z
    torch.relu_(y)
    return y * (seen() is y)


def _watched_relu(y):
    seen = weakref.ref(y)
    torch.relu_(y)
    y.mul_(2)
    return torch.relu(y) + y * (seen() is y)


def _summed(y):
    z = y + y.detach()
    return torch.relu(z) + z + y


USES = {
    "weak reference": _watched,
    "weak reference, ReLU": _watched_relu,
    "sum": lambda y: y + 1,
    "index": lambda y: y[1:, 2],
    "view": lambda y: y.view(6, 12),
    "twice": lambda y: y.relu() + y.sigmoid() + y.relu(),
    "in place": _in_place,
    "in place ReLU": _in_place_relu,
    "after a look": lambda y: y.relu() if y.detach().mean() < 100 else y,
    "own function": lambda y: Twice.apply(y),
    "own function, unseen": lambda y: Saves.apply(y) * y.relu(),
    "own function and others": _saved_by_another,
    "list": lambda y: torch.cat([y, y.relu()]),
    "out of a ReLU": lambda y: torch.relu_(2 * torch.relu(y)),
    "ReLU of a sum": lambda y: torch.relu(y + torch.linspace(-1, 1, 72).view(6, 3, 4)),
    "ReLU of a sum the other way": lambda y: torch.linspace(-1, 1, 72).view(6, 3, 4).add(y).relu_(),
    "ReLU of a sum in place": lambda y: y.add_(2 * y.sigmoid()).relu(),
    "ReLU of a sum of itself": lambda y: F.relu(y + y),
    "ReLU of a broad sum": lambda y: F.relu(y + torch.ones(4)),
    "ReLU of a weighted sum": lambda y: F.relu(torch.add(y, torch.ones(6, 3, 4), alpha=-0.5)),
    "ReLU of a sum with one that lies otherwise": lambda y: F.relu(torch.linspace(-1, 1, 72).view(6, 4, 3).mT + y),
    "sum into a tensor": lambda y: y.relu() + torch.no_grad()(torch.add)(y, y, out=torch.empty(0)),
    "ReLU of a wider sum": lambda y: F.relu(y + torch.ones(6, 3, 4, dtype=torch.float64)).float(),
    "ReLU of a sum of two sums": lambda y: F.relu((y + torch.ones(6, 3, 4)) + (y + y.detach())),
    "sum of a sum and its ReLU": _summed,
    "sum of itself in place": lambda y: y.add_(y).relu(),
    "sum of a sum in place": lambda y: (y + torch.ones(6, 3, 4)).add_(y).relu_(),
    "sum and own function": lambda y: Twice.apply(y + y.detach()),
    "no gradients inside": lambda y: y * torch.no_grad()(lambda: y.abs().max())(),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_norm_gives_what_torch_gives(use, frugal):
    del frugal
    found = []
    for mine in (True, False):
        x, mean, variance, weight, bias = waiting()
        y = F.batch_norm(x * 1, mean, variance, weight, bias, True, 0.3)
        if not mine:
            with torch._C.DisableTorchFunction():
                y = F.batch_norm(x * 1, *(t.zero_() + i for i, t in enumerate((mean, variance))), weight, bias, True)
        assert isinstance(y, Deferred) == mine
        assert (y.shape, y.dtype, y.requires_grad) == ((6, 3, 4), torch.float32, True)
        z = USES[use](y)
        grads = torch.autograd.grad((z * torch.linspace(-1, 1, z.numel()).view(z.shape)).sum(), (x, weight, bias))
        found.append((z.detach(), *grads))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_statistics_are_there_at_once_and_once(frugal):
    del frugal
    x, mean, variance, weight, bias = waiting()
    before = mean._version
    y = F.batch_norm(x, mean, variance, weight, bias, True, 0.25)
    assert mean._version > before
    torch.testing.assert_close(mean, 0.25 * x.detach().mean((0, 2)))
    torch.testing.assert_close(variance, 0.75 + 0.25 * x.detach().var((0, 2)))
    noted = mean.clone(), variance.clone()
    z = y + y.relu()
    assert torch.equal(F.relu(y) + y, z)
    assert torch.equal(mean, noted[0])
    assert torch.equal(variance, noted[1])


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y + 1,
        torch.relu,
        torch.relu_,
        lambda y: y.add_(1),
        lambda y: torch.relu(y + torch.ones(6, 3, 4)),
        lambda y: y.add_(torch.ones(6, 3, 4)).relu_(),
    ],
)
def test_nothing_is_left_for_the_garbage_collector(use, frugal):
    del frugal
    x, *rest = waiting()
    source = x * 1
    seen = weakref.ref(source)
    gc.disable()
    try:
        y = F.batch_norm(source, *rest, True)
        z = use(y)
        del source, y, z
        assert seen() is None
    finally:
        gc.enable()


def test_an_input_changed_in_place_is_refused(frugal):
    del frugal
    x, mean, variance, weight, bias = waiting()
    source = x * 1
    y = F.batch_norm(source, mean, variance, weight, bias, True)
    source.add_(1)
    with pytest.raises(BackendError, match=r"input of a batch norm, of shape \(6, 3, 4\), was changed in place"):
        torch.relu(y)


@pytest.mark.parametrize("use", [torch.relu, torch.sigmoid, lambda y: Twice.apply(y)])
def test_what_was_added_and_changed_in_place_is_refused(use, frugal):
    del frugal
    other = torch.ones(6, 3, 4)
    y = F.batch_norm(*waiting(), True) + other
    other.add_(1)
    with pytest.raises(BackendError, match=r"added to a batch norm, of shape \(6, 3, 4\), was changed in place"):
        use(y)


def test_a_sums_relu_saves_a_bit_for_each_element(frugal):
    del frugal
    (x, *rest), saved = waiting(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.relu(F.batch_norm(x, *rest, True) + torch.ones(6, 3, 4))
    assert [t.dtype for t in saved if t.shape == x.shape and t.data_ptr() != x.data_ptr()] == [torch.bool]


@pytest.mark.parametrize(
    "change", [torch.relu_, lambda y: y.add_(1), torch.sigmoid_, lambda y: y.add_(torch.ones(6, 3, 4))]
)
@pytest.mark.parametrize("function", [Saves, Twice], ids=["unseen", "seen"])
def test_a_norm_that_somebody_has_saved_is_not_changed_in_place(function, change, frugal):
    del frugal
    y = F.batch_norm(*waiting(), True)
    kept = function.apply(y)
    with pytest.raises(BackendError, match=r"result of shape \(6, 3, 4\) was changed in place"):
        change(y)
    assert kept.requires_grad


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("chain", ["norm", "norm and ReLU", "ReLU", "sum and ReLU"])
def test_second_derivatives_are_refused(chain, inplace, frugal):
    del frugal
    x, *rest = waiting()
    y = x * x if chain == "ReLU" else F.batch_norm(x * x, *rest, True)
    y = y + x if chain == "sum and ReLU" else y
    y = y.sigmoid() if chain == "norm" else F.relu(y, inplace=inplace)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(DoubleBackwardError):
        grad.sum().backward()


def test_transformed_functions_are_left_to_torch(frugal):
    del frugal

    def loss(x):
        return F.relu(F.batch_norm(x, None, None, training=True)).square().sum()

    x = torch.randn(4, 3, 5)
    found = torch.func.grad(loss)(x)
    own = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(loss(own), own)[0], rtol=1e-4, atol=1e-5)
    assert torch.func.vmap(torch.relu)(x.requires_grad_()).shape == x.shape


# ---- networks
CHECKPOINTED = {
    "all": lambda m, x, call: m.c(call(lambda t: m.relu(m.b(m.a(t))), x)),
    "norm and ReLU": lambda m, x, call: m.c(call(lambda t: F.relu(m.b(t)), m.a(x))),
    "ReLU": lambda m, x, call: m.c(call(torch.relu, m.b(m.a(x)))),
    "product": lambda m, x, call: call(lambda t: m.c(t).sigmoid(), F.relu(m.b(m.a(x)))),
    "used before": lambda m, x, call: m.after(m.b(m.a(x)), call),
}


class Checkpointed(nn.Module):
    """A part runs again in the backward pass."""

    def __init__(self, way, reentrant):
        super().__init__()
        self.a, self.b, self.c, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.ReLU(True)
        self.way, self.reentrant = way, reentrant

    def forward(self, x):
        return CHECKPOINTED[self.way](self, x, lambda f, t: checkpoint(f, t, use_reentrant=self.reentrant))

    def after(self, y, call):
        return self.c(y.sigmoid() + call(torch.relu, y) + y)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", CHECKPOINTED)
def test_parts_that_run_again(way, reentrant, asked, device):
    torch.manual_seed(0)
    model = leave_blocked(fs.sparsify(Checkpointed(way, reentrant), 0.5, exclude="none")).to(device)
    fs.set_backend(model, "masked")
    plain = copy.deepcopy(model)
    found, wanted = outcome(asked(model), pictures(device)), outcome(plain, pictures(device))
    near(found, wanted)


def test_hooks_see_tensors_and_gradients(asked, device):
    model = built("batch norm", device)
    plain, seen = copy.deepcopy(model), {}

    def watch(one, key):
        found = seen[key] = []
        one.bn1.register_forward_hook(lambda _m, _i, out: found.append(out.detach().clone()))
        one.bn1.register_full_backward_hook(lambda _m, into, out: found.extend((into[0].clone(), out[0].clone())))

    asked(model)
    watch(model, "mine")
    watch(plain, "torch")
    # The hook of a backward pass makes views, which torch will not let a ReLU change.
    model.relu.inplace = plain.relu.inplace = False
    near(outcome(model, pictures(device)), outcome(plain, pictures(device)))
    for mine, theirs in zip(seen["mine"], seen["torch"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles(asked, device):
    model = asked(built("batch norm", device))
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    found = outcome(model, pictures(device))
    for other in others:
        near(outcome(other, pictures(device)), found, 1e-6)


def test_parts_prune_in_their_own_way(calls):
    model = built("perceptron")
    plain = outcome(copy.deepcopy(model), pictures())
    prune_activations(model, 0.3)
    found = outcome(prune_activations(model[4], 1.0) and model, pictures())
    near({"4.values": found["4.values"]}, {"4.values": plain["4.values"]})
    assert (found["6.values"] - plain["6.values"]).norm() > 0.1 * plain["6.values"].norm()
    assert calls["relu"] == 1


def test_a_failure_inside_leaves_nothing_behind(asked, calls):
    model = asked(built("batch norm"))
    with pytest.raises(fs.ShapeError):
        model(torch.randn(5, 4, 9, 9))
    assert not _get_current_function_mode_stack()
    calls.clear()
    built("batch norm")(pictures()).sum().backward()
    assert not calls


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_parts_run_as_torch_compiles_them(asked, calls):
    model = asked(built("perceptron"))
    part = copy.deepcopy(model)
    wanted = outcome(copy.deepcopy(model), pictures())
    calls.clear()
    found = outcome(torch.compile(model, backend="eager"), pictures())
    near({key.removeprefix("_orig_mod."): value for key, value in found.items()}, wanted)
    part[2].compile(backend="eager")
    near(outcome(part, pictures()), wanted)
    assert calls == {"relu": 2}
