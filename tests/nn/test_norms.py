"""Norms fused on a device, with plain torch for its kernels; what they compute is checked in tests/blocked."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedsparse as fs
from fedsparse.blocked import leave_blocked
from fedsparse.nn import Joint, capture_step, fold, fuse_norms, prune_activations, side_by_side
from tests.devices import CUDA, plain_products
from tests.plain_device import plain_device

# Of a forward pass of `network`: two norms, of which one has a ReLU, and a ReLU alone.
FUSED = {"statistics": 2, "norm and relu": 1, "norm": 1, "relu": 1}


def network(*, sparse=True):
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6)),  # read by a convolution, without a ReLU
        *(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 5)),
    )
    if sparse:
        fs.sparsify(model, 0.5, distribution="uniform", exclude="none")
        fs.set_backend(model, "masked")
    return leave_blocked(model)


def batch(generator, networks=1):
    pictures = torch.randn(4, 3 * networks, 9, 9, generator=generator)
    return pictures, torch.randint(5, (4 * networks,), generator=generator)


def step(model, x, y):
    """Loss and gradients."""
    model.zero_grad()
    loss = F.cross_entropy(model(x).view(len(y), -1), y)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def hooks(model):
    return len(model._forward_pre_hooks), len(model._forward_hooks), len(model._forward_hooks_always_called)


def near(found, wanted):
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_model_trains_as_before(sparse, generator):
    model = network(sparse=sparse)
    plain, (x, y) = copy.deepcopy(model), batch(generator)
    assert fuse_norms(model) is model
    with plain_device() as kernels:
        for _ in range(2):
            near(step(model, x, y), step(plain, x, y))
    assert kernels.calls == {name: 2 * count for name, count in FUSED.items()}
    near(model.buffers(), plain.buffers())


def test_residual_sums_wait_with_their_norms(generator):
    """Of ResNet-18, 8 norms have a sum behind them, 3 are added by those, and 9 have a ReLU."""
    torch.manual_seed(0)
    model = fs.models.resnet18(width=4)
    plain, (x, y) = copy.deepcopy(model), (torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4))
    with plain_device() as kernels:
        near(step(fuse_norms(model), x, y), step(plain, x, y))
    assert kernels.calls == {"statistics": 20, "norm and relu": 9, "norm": 3, "norm, sum and relu": 8}


def test_nothing_changes_without_a_device(generator):
    model, (x, y) = network(), batch(generator)
    wanted = step(copy.deepcopy(model), x, y)
    assert all(torch.equal(a, b) for a, b in zip(step(fuse_norms(model), x, y), wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, generator):
    wide, (x, y) = network(sparse=False), batch(generator)
    model = copy.deepcopy(wide).to(dtype)
    with plain_device() as kernels:
        found = fuse_norms(model)(x.to(dtype))
        assert found.dtype == dtype
        F.cross_entropy(found.float(), y).backward()
    assert kernels.calls == FUSED
    assert (found - wide(x)).norm() < 0.05 * found.norm()
    assert all(p.grad.dtype == dtype for p in model.parameters())


def test_pictures_that_are_channels_last_are_left_to_torch(generator):
    model, (x, y) = network(sparse=False).to(memory_format=torch.channels_last), batch(generator)
    with plain_device() as kernels:
        step(fuse_norms(model), x.contiguous(memory_format=torch.channels_last), y)
    assert not kernels.calls


def test_only_the_part_that_was_asked(generator):
    model, (x, y) = network(), batch(generator)
    head, rest = nn.Sequential(*model[:3]), nn.Sequential(*model[3:])
    model = nn.Sequential(head, rest)
    wanted = step(copy.deepcopy(model), x, y)
    fuse_norms(head)
    with plain_device() as kernels:
        near(step(model, x, y), wanted)
    assert kernels.calls == {"statistics": 1, "norm and relu": 1}


# ---- beside pruned activations
def fuses(model):
    return fuse_norms(model)


def parts(model):
    return fuse_norms(model, False)


def prunes(model):
    return prune_activations(model, 0.5, dtype=torch.bfloat16)


def keeps(model):
    return prune_activations(model, None)


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ((fuses, prunes), (prunes,)),
        ((prunes, fuses), (prunes,)),
        ((fuses, prunes, keeps), (fuses,)),
        ((prunes, fuses, keeps), (fuses,)),
        ((fuses, prunes, parts), (prunes,)),
        ((prunes, fuses, parts), (prunes,)),
        ((fuses, fuses, parts), ()),
        ((prunes, fuses, parts, keeps), ()),
    ],
)
def test_both_come_and_go(asked, same, generator):
    """What both ask for pruning says; what one undoes the other has not asked for."""
    x, y = batch(generator)
    results = []
    for ways in (asked, same):
        model = network()
        for way in ways:
            way(model)
        with plain_device() as kernels:
            results.append((step(model, x, y), dict(kernels.calls)))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))


def test_a_pruned_part_of_a_fused_model(generator):
    model, (x, y) = fuse_norms(network()), batch(generator)
    whole = step(copy.deepcopy(model), x, y)
    prune_activations(model[5], 0.2)
    with plain_device() as kernels:
        found = step(model, x, y)
    assert kernels.calls == FUSED
    names = ["loss", *dict(model.named_parameters())]
    apart = [(a - b).norm() > 0.1 * b.norm() for a, b in zip(found, whole, strict=True)]
    assert [name for name, other in zip(names, apart, strict=True) if other] == ["5.values"]


# ---- beside all else
def test_undone_copied_and_pickled(generator):
    model, (x, y) = network(), batch(generator)
    before = hooks(model)
    fuse_norms(fuse_norms(model))
    fuse_norms(model[1])
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with plain_device() as kernels:
            step(one, x, y)
        assert kernels.calls == FUSED
    assert fuse_norms(model, False) is model
    assert hooks(model) == before
    with plain_device() as kernels:
        step(model, x, y)
    assert not kernels.calls


def test_folded_networks_are_fused(generator):
    alone = [fuse_norms(network()) for _ in range(2)]
    inputs = batch(generator, networks=2)[0].chunk(2, dim=1)
    with plain_device() as kernels:
        wide = fold(alone)
        found = wide(side_by_side(inputs)).chunk(2, dim=1)
        assert kernels.calls == FUSED  # at once for both
    near(found, [one(mine) for one, mine in zip(alone, inputs, strict=True)])


def test_networks_that_share_memory_train_as_each_by_itself(generator):
    alone = [network() for _ in range(2)]
    together = [fuse_norms(copy.deepcopy(one)) for one in alone]
    x, y = batch(generator, networks=2)
    with plain_device() as kernels:
        joint = Joint(together)
        found = joint(x.chunk(2, dim=1))
        joint.backward(sum(F.cross_entropy(z, mine) for z, mine in zip(found, y.chunk(2), strict=True)))
    assert kernels.calls == FUSED
    for one, twin, pictures, labels in zip(alone, together, x.chunk(2, dim=1), y.chunk(2), strict=True):
        near([p.grad for p in twin.parameters()], step(one, pictures.contiguous(), labels)[1:])
        near([b for name, b in twin.named_buffers() if "running" in name],
             [b for name, b in one.named_buffers() if "running" in name])  # fmt: skip


def play(work, warmup, between):
    """Takes the place of a capture: what is replayed is computed again, into the captured result."""
    for _ in range(warmup):
        work()
    between()
    result = work().clone()
    between()
    return result, lambda: result.copy_(work())


def test_a_captured_step_trains_as_usual(generator):
    model = fuse_norms(network())
    twin, (x, y) = copy.deepcopy(model), batch(generator)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in (model, twin)]
    with plain_device():
        captured = capture_step(model, optimizers[0], lambda x, y: F.cross_entropy(model(x), y), (x, y), record=play)
        for _ in range(3):
            x, y = batch(generator)
            (loss, *_), mine = step(twin, x, y), captured(x, y)
            optimizers[1].step()
            assert torch.equal(mine, loss)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


@pytest.mark.gpu
@CUDA[1]
def test_on_a_device(generator):
    """Called one by one, and captured."""
    pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")
    model = network().cuda()
    plain, (x, y) = copy.deepcopy(model), (t.cuda() for t in batch(generator))
    with plain_products():
        near(step(fuse_norms(model), x, y), step(plain, x, y))
        near(model.buffers(), plain.buffers())
        sgd = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, plain)]
        captured = capture_step(model, sgd[0], lambda x, y: F.cross_entropy(model(x), y), (x, y))
        for _ in range(3):
            wanted = step(plain, x, y)[0]
            sgd[1].step()
            torch.testing.assert_close(captured(x, y), wanted, rtol=1e-3, atol=1e-4)
