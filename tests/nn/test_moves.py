"""Masks of all layers moved together where the CUDA kernels run: as layer by layer, in few calls and fewer waits.

The kernels run on the CPU, and take tensors in main memory for those of a device.
"""

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fedsparse as fs
from benchmarks.gpu.prune_work import CALLS
from fedsparse import _native, pruning
from fedsparse.errors import PatternError
from fedsparse.models import resnet18
from fedsparse.nn import sparse_layers
from fedsparse.nn.layer import repattern
from fedsparse.pattern import Pattern
from tests.devices import pretend

EXCLUDED = ("conv1.weight", "fc.weight")
LAYERS = 19
# Ops that only look at tensors in another way, or make room for them.
FREE = {"detach", "view", "reshape", "split", "split_with_sizes", "select", "slice", "squeeze", "unbind", "alias"}
FREE |= {
    "empty",
    "new_empty",
    "empty_like",
    "new_empty_strided",
    "empty_strided",
    "expand",
    "lift_fresh",
    "_unsafe_view",
}
WAITS = {"_local_scalar_dense", "nonzero", "_unique2"}
OPTIMIZERS = {
    "sgd": lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9),
    "adam": lambda values: torch.optim.Adam(values, lr=0.1, amsgrad=True),
}


class Asked(TorchDispatchMode):
    """Counts what torch is asked to do, and for what of that the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        self.calls[name] += name not in FREE
        self.waits += name in WAITS
        return op(*args, **(kwargs or {}))


class Talks(TorchFunctionMode):
    """Counts the lists that are read or sent, which are no ops."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.sent = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.read += name == "tolist"
        self.sent += name == "new_tensor"
        return function(*args, **(kwargs or {}))


def network(generator, granularity, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
        model = resnet18(10, "3x3", width)
        return fs.sparsify(model, 0.4, granularity=granularity, distribution="uniform", exclude=EXCLUDED)


def stepped(layers, name, generator):
    """An optimiser that holds something for every value."""
    optimizer = OPTIMIZERS[name]([layer.values for layer in layers.values()])
    for layer in layers.values():
        layer.values.grad = torch.randn(layer.nnz, generator=generator)
    optimizer.step()
    return optimizer


def drawn(layers, generator, *, ordered):
    """Candidates with scores, and how many are swapped."""
    candidates, counts = {}, {}
    for name, layer in layers.items():
        pruned = (~layer.mask).view(-1).nonzero().squeeze(1)[::3].contiguous()
        if not ordered:
            pruned = pruned[torch.randperm(len(pruned), generator=generator)]
        candidates[name], counts[name] = (pruned, torch.randn(len(pruned), generator=generator)), layer.nnz // 5
    return candidates, counts


def swapped(layers, candidates, counts):
    return pruning.swap_all(
        {name: layer.pattern for name, layer in layers.items()},
        {name: layer.values for name, layer in layers.items()},
        candidates,
        counts,
    )


@pytest.mark.parametrize("ordered", [True, False], ids=["ascending", "in any order"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("granularity", ["element", "vector:8", "block:3"])
def test_as_layer_by_layer_in_main_memory(binding, generator, monkeypatch, granularity, name, ordered):
    """Bit for bit: masks, values and every state. Some layers swap nothing, one keeps all, one nothing."""
    model, twin = (network(torch.Generator().manual_seed(5), granularity) for _ in range(2))
    there, here = (sparse_layers(one) for one in (model, twin))
    first, *_, other, last = there
    for layers in (there, here):
        layers[first].repattern(Pattern.from_mask(torch.ones(layers[first].pattern.shape, dtype=torch.bool)))
        layers[last].repattern(Pattern.from_mask(torch.zeros(layers[last].pattern.shape, dtype=torch.bool)))
    steps = [stepped(layers, name, torch.Generator().manual_seed(6)) for layers in (there, here)]
    candidates, counts = drawn(there, generator, ordered=ordered)
    counts[other] = 0
    wanted = {n: swapped({n: here[n]}, candidates, counts)[n] for n in here}
    for layer, pattern in zip(here.values(), wanted.values(), strict=True):
        layer.repattern(pattern, optimizer=steps[1], grown=0.25)
    pretend(binding, monkeypatch)
    found = swapped(there, candidates, counts)
    assert found == wanted
    assert [*found] == [*there]
    repattern([(there[n], pattern) for n, pattern in found.items()], optimizer=steps[0], grown=0.25)
    for ours, theirs in zip(there.values(), here.values(), strict=True):
        assert torch.equal(ours.values, theirs.values)
        assert all(
            torch.equal(a, b)
            for a, b in zip(*(s.state[v].values() for s, v in of_both(steps, ours, theirs)), strict=True)
        )


def of_both(steps, ours, theirs):
    return zip(steps, (ours.values, theirs.values), strict=True)


def test_numbers_of_another_type_follow_by_themselves(binding, generator, monkeypatch):
    layer = next(iter(sparse_layers(network(generator, "element")).values()))
    optimizer = stepped({"": layer}, "sgd", generator)
    state = optimizer.state[layer.values]
    state["wide"], state["count"] = state["momentum_buffer"].double(), torch.arange(layer.nnz, dtype=torch.int32)
    old, new = layer.pattern, Pattern.from_mask(torch.rand(layer.pattern.shape, generator=generator) < 0.3)
    wanted = {key: old.moved(entry, new) for key, entry in state.items()}
    pretend(binding, monkeypatch)
    layer.repattern(new, optimizer=optimizer)
    assert all(torch.equal(state[key], entry) and state[key].dtype == entry.dtype for key, entry in wanted.items())


@pytest.mark.parametrize("granularity", CALLS)
def test_calls_for_all_layers(binding, generator, monkeypatch, granularity):
    """What `benchmarks.gpu` says of them, and kernels: ten to choose weights, and three to change patterns."""
    layers = sparse_layers(network(generator, granularity, width=16))
    optimizer = stepped(layers, "sgd", generator)
    candidates, counts = drawn(layers, generator, ordered=True)
    assert len(layers) == LAYERS
    pretend(binding, monkeypatch)
    # On a device scores are searched by torch where no kernel does it.
    monkeypatch.setattr("fedsparse.pruning.select.selectable", lambda _: False)
    before = binding.shim_launches()
    with Talks() as talks, Asked() as asked:
        new = swapped(layers, candidates, counts)
        repattern([(layers[name], pattern) for name, pattern in new.items()], optimizer=optimizer)
    launches = binding.shim_launches() - before
    assert (asked.calls.total() + talks.sent, asked.waits + talks.read) == CALLS[granularity], asked.calls
    assert launches == 1 + (10 if granularity == "element" else 0) + 3


def test_refusals_name_what_is_wrong(binding, generator, monkeypatch):
    """As in main memory, though all weights are looked at together."""
    layers = dict([*sparse_layers(network(generator, "element")).items()][:3])
    candidates, counts = drawn(layers, generator, ordered=True)
    second = [*layers][1]
    positions, scores = candidates[second]
    kept, size = layers[second].pattern.flat, layers[second].pattern.size
    wrong = {
        "outside": (torch.cat([positions, positions[:1] * 0 + size]), torch.cat([scores, scores[:1]])),
        "kept": (torch.cat([positions, kept[2:3]]), torch.cat([scores, scores[:1]])),
        "twice": (torch.cat([positions, positions[:1]]), torch.cat([scores, scores[:1]])),
        "NaN": (positions, scores.index_fill(0, torch.tensor([1]), torch.nan)),
    }

    def refusals():
        for pair in wrong.values():
            with pytest.raises(PatternError) as caught:
                swapped(layers, {**candidates, second: pair}, counts)
            yield str(caught.value)

    messages = [*refusals()]
    assert len(set(messages)) == len(wrong)
    pretend(binding, monkeypatch)
    assert [*refusals()] == messages
    assert _native.on_device(positions)
