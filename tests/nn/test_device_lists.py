"""What a change of all masks of a network costs on a device besides its patterns: lists of every layer together.

The kernels run on the CPU, and take tensors in main memory for those of a device.
"""

import pytest
import torch

import fedsparse as fs
from fedsparse.backends import cuda_lists
from fedsparse.backends.choose import BACKENDS
from fedsparse.models import resnet18
from fedsparse.nn import read_weights, sparse_layers, write_weights
from tests.backends.test_cuda import OnCpu
from tests.devices import pretend

WIDTH, EXCLUDED = 8, ("conv1.weight", "fc.weight")
# One looks which strips there are; then chunks of lines, or taps, are counted, added up and listed.
LAUNCHES = 4


@pytest.fixture
def native(binding, monkeypatch):
    pretend(binding, monkeypatch)
    monkeypatch.setitem(BACKENDS, "cuda", OnCpu())
    return binding


@pytest.fixture
def work(native, monkeypatch):
    """Launches of the kernels that look at patterns, tables sent to the device, answers read by the host, copies."""
    done = {"launches": 0, "tables": 0, "reads": 0, "copies": 0}
    launch, send, found, copied = cuda_lists.launch, cuda_lists.Table.send, cuda_lists._found, torch._foreach_copy_

    def counted(key, call):
        def instead(*arguments, **options):
            done[key] += 1
            return call(*arguments, **options)

        return instead

    def launched(*arguments):
        before = native.shim_launches()
        launch(*arguments)
        done["launches"] += native.shim_launches() - before

    monkeypatch.setattr(cuda_lists, "launch", launched)
    monkeypatch.setattr(cuda_lists.Table, "send", counted("tables", send))
    monkeypatch.setattr(cuda_lists, "_found", counted("reads", found))
    monkeypatch.setattr(torch, "_foreach_copy_", counted("copies", copied))
    monkeypatch.setattr(torch.Tensor, "copy_", counted("copies", torch.Tensor.copy_))
    return done


def network(granularity, generator):
    """The sparse layers of a narrow ResNet-18, which have met nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
        model = resnet18(10, "3x3", WIDTH)
        model = fs.sparsify(model, 0.4, granularity=granularity, distribution="uniform", exclude=EXCLUDED)
    fs.set_backend(model, "cuda")
    return model


def meet(model, generator, every=1):
    """A product of every sparse layer, and its gradients: lists of both directions are there afterwards."""
    return [
        gradients(layer, torch.randn(1, layer.pattern.shape[1], 3, 3, generator=generator))
        for layer in [*sparse_layers(model).values()][::every]
    ]


def gradients(layer, x):
    y = layer(x.requires_grad_())
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, layer.values))]


def moved(model, generator):
    """As many units of every layer, elsewhere."""
    new = {}
    for name, layer in sparse_layers(model).items():
        tiling = layer.granularity.tiling(layer.pattern.shape)
        units = torch.zeros(tiling.count, dtype=torch.bool)
        units[tiling.of(layer.pattern.flat)] = True
        new[name] = tiling.spread(units[torch.randperm(tiling.count, generator=generator)]).view(layer.pattern.shape)
    return new


def forget(work):
    for name in work:
        work[name] = 0


def fresh(model, generator):
    """Equal layers, with patterns of their own, that have met nothing."""
    twin = network(str(next(iter(sparse_layers(model).values())).granularity), generator)
    twin.load_state_dict(model.state_dict())
    return twin


def check(model, generator):
    """Products and gradients of some layers are, bit for bit, those of layers whose lists are built from nothing."""
    twin, seed = fresh(model, generator), int(torch.randint(1 << 30, (1,), generator=generator))
    lists = BACKENDS["cuda"]._lists
    assert not any(lists.of(layer.get_buffer("column")) for layer in sparse_layers(twin).values())
    found, wanted = (meet(one, torch.Generator().manual_seed(seed), every=4) for one in (model, twin))
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("fixed", [False, True], ids=["new memory", "in place"])
@pytest.mark.parametrize("granularity", ["vector:8", "block:8", "element"])
def test_lists_of_all_layers_take_the_launches_of_one(work, generator, granularity, fixed):
    model = network(granularity, generator)
    layers = sparse_layers(model)
    assert len(layers) == 19
    for layer in layers.values() if fixed else ():
        layer.keep_addresses()
    meet(model, generator)
    masks, name = moved(model, generator), next(iter(layers))
    for some in ({name: masks[name]}, {other: mask for other, mask in masks.items() if other != name}):
        forget(work)
        fs.set_masks(model, some)
        wanted = {"launches": LAUNCHES, "tables": 2, "reads": 1}
        assert {key: work[key] for key in wanted} == wanted
    forget(work)
    check(model, generator)


def test_indices_that_stay_are_copied_together(work, generator):
    """In a call for each of their two widths, whatever the number of layers; values in another one."""
    model = network("vector:8", generator)
    for layer in sparse_layers(model).values():
        layer.keep_addresses()
    meet(model, generator)
    masks = moved(model, generator)
    addresses = [t.data_ptr() for layer in sparse_layers(model).values() for t in layer.index]
    forget(work)
    fs.set_masks(model, masks)
    assert addresses == [t.data_ptr() for layer in sparse_layers(model).values() for t in layer.index]
    assert work["copies"] == 1 + 2 + 2  # of values, of indices, of tables
    assert all(torch.equal(layer.mask, masks[name]) for name, layer in sparse_layers(model).items())


def test_nothing_is_made_once_more_afterwards(work, generator):
    model = network("block:8", generator)
    meet(model, generator)
    fs.set_masks(model, moved(model, generator))
    forget(work)
    meet(model, generator)
    assert (work["launches"], work["tables"], work["reads"]) == (0, 0, 0)


def test_written_weights_make_lists_together(work, generator):
    model, weights = network("vector:8", generator), read_weights(network("vector:8", generator))
    meet(model, generator)
    forget(work)
    write_weights(model, weights)
    assert (work["launches"], work["tables"], work["reads"]) == (LAUNCHES, 2, 1)
    check(model, generator)
