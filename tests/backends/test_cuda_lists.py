"""Lists of the cuda backend for many patterns at once: those built one by one, in few launches and at most one read."""

import pytest
import torch

from fedsparse.backends import Case, Change, Geometry, cuda_lists
from fedsparse.backends.cuda import CudaBackend
from fedsparse.backends.cuda_lists import Alike, Strips, Taps, alike, build, problem_of, rewrite
from fedsparse.pattern import Pattern, parse
from tests.devices import pretend

# (weight, picture, geometry, granularity) of layers; those without strips last.
LAYERS = (
    ((32, 16, 3, 3), (5, 6), Geometry(padding=(1, 1)), "block:16"),
    ((24, 9, 3, 3), (7, 6), Geometry((2, 1), (1, 1), (1, 2)), "vector:8"),
    ((64, 96, 1, 1), (4, 4), Geometry((2, 2)), "block:16"),
    ((32, 4, 3, 3), (6, 5), Geometry(padding=(1, 1), groups=2), "vector:16"),
    ((64, 70), None, None, "vector:32"),
    ((20, 11, 3, 3), (5, 5), Geometry((2, 2), (1, 1)), "element"),
    ((17, 90), None, None, "element"),
)
STRUCTURED = tuple(layer for layer in LAYERS if layer[3] != "element")


@pytest.fixture(params=[0, 1], ids=lambda seed: f"schedule{seed}")
def native(binding, monkeypatch, request):
    pretend(binding, monkeypatch)
    binding.shim_seed(request.param)
    yield binding
    binding.shim_seed(0)


@pytest.fixture
def work(native, monkeypatch):  # noqa: ARG001  kernels on the CPU
    """Names of what is launched, and "copy" for each table that is sent to the device, in order."""
    done, send, launch = [], cuda_lists.Table.send, cuda_lists.launch
    monkeypatch.setattr(cuda_lists.Table, "send", lambda table: done.append("copy") or send(table))
    monkeypatch.setattr(cuda_lists, "launch", lambda name, *rest: done.append(name) or launch(name, *rest))
    return done


def pattern_of(shape, granularity, density, generator):
    unit = parse(granularity)
    tiling = unit.tiling(shape)
    kept = torch.randperm(tiling.count, generator=generator) < round(density * tiling.count)
    return Pattern.from_mask(tiling.spread(kept).view(shape), unit)


def case_of(layer, dtype=torch.float32):
    shape, picture, geometry, _ = layer
    channels = shape[1] * (geometry.groups if geometry else 1)
    return Case(shape, (8, channels, *(picture or ())), 0, geometry, dtype, "cuda")


def problems_of(layer, dtype=torch.float32):
    return [problem_of(case_of(layer, dtype), backward=backward) for backward in (False, True)]


def drawn(layers, generator, density=0.4):
    return [pattern_of(layer[0], layer[3], density, generator) for layer in layers]


def same(one, other):
    """Equal lists, as far as they are read."""
    assert type(one) is type(other)
    assert one.form == other.form
    used = (
        len(one.start),
        *([int(one.start[-1]) * n for n in (16, 16 * one.width)] if isinstance(one, Strips) else ()),
    )
    lists = zip((one.start, one.offset, one.value), (other.start, other.offset, other.value), strict=True)
    for number, (a, b) in enumerate(lists):
        end = used[number] if number < len(used) else None
        assert torch.equal(a[:end].to(torch.int32), b[:end].to(torch.int32))


def test_strips_of_all_patterns_are_found_at_once(work, generator):
    """Whatever granularities are called; patterns that keep nothing or all have every strip."""
    patterns = drawn(LAYERS, generator)
    patterns += [Pattern.from_mask(torch.full((16, 8, 3, 3), full)) for full in (True, False)]
    plain = [Pattern.from_index(pattern.shape, pattern.index) for pattern in patterns]
    wanted = [(16, 16), (8, 0), (16, 16), (16, 0), (32, 0), (0, 0), (0, 0), (32, 32), (32, 32)]
    found = alike(patterns)
    assert work == ["copy", "cuda_block_strips"]
    assert [(a >= c, b >= d) for (a, b), (c, d) in zip(found, wanted, strict=True)] == [(True, True)] * len(wanted)
    assert found == alike(plain)
    assert alike([]) == []


def test_devices_of_little_memory_look_for_nothing(work, native, monkeypatch):
    monkeypatch.setattr(native, "cuda_shared_limit", lambda: 99 << 10)
    assert alike([Pattern.from_mask(torch.eye(16, dtype=torch.bool))]) == [Alike(0, 0)]
    assert work == []


# ---- lists
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_lists_built_together_are_those_built_alone(native, generator, dtype, density):  # noqa: ARG001
    patterns = drawn(LAYERS, generator, density)
    wanted = [(problems_of(layer, dtype), pattern) for layer, pattern in zip(LAYERS, patterns, strict=True)]
    found = build(wanted)
    for (problems, pattern), lists in zip(wanted, found, strict=True):
        for problem, one in zip(problems, lists, strict=True):
            same(one, build([([problem], pattern)])[0][0])
    if density == 0.3:
        kinds = [[type(one) for one in lists] for lists in found]
        assert kinds == [[Strips, Strips]] * len(STRUCTURED) + [[Taps, Taps]] * 2


def test_lists_are_written_anew_where_they_lie(work, generator):
    problems = [problems_of(layer) for layer in LAYERS]
    held = build([*zip(problems, drawn(LAYERS, generator), strict=True)])
    places = [[t.data_ptr() for t in (one.start, one.offset, one.value)] for lists in held for one in lists]
    new = drawn(LAYERS, generator)
    work.clear()
    assert rewrite([*zip(held, new, strict=True)]) == [True] * len(LAYERS)
    assert work == ["copy", "cuda_block_strips", "copy", "cuda_lists"]
    assert places == [[t.data_ptr() for t in (one.start, one.offset, one.value)] for lists in held for one in lists]
    for lists, fresh in zip(held, build([*zip(problems, new, strict=True)]), strict=True):
        for one, other in zip(lists, fresh, strict=True):
            same(one, other)


def test_a_pattern_that_loses_its_strips_leaves_its_lists_alone(native, generator):  # noqa: ARG001
    """As does one that gains some, or keeps another number of weights; all others are written."""
    layers = [(layer[0], *layer[1:3], "element") for layer in LAYERS[:3]]
    problems = [problems_of(layer) for layer in layers]
    strips, others = drawn(LAYERS[:3], generator), drawn(LAYERS[:3], generator)
    plain, more = ([Pattern.from_index(p.shape, p.index) for p in some] for some in (strips, others))
    held = build([*zip(problems, plain, strict=True)])
    before = [[t.clone() for one in lists for t in one[-3:]] for lists in held]
    flat = more[1].mask().view(-1)
    one, none = int(flat.nonzero()[0]), int((~flat).nonzero()[-1])
    flat[one], flat[none] = False, True
    more[1] = Pattern.from_mask(flat.view(more[1].shape))
    full = Pattern.from_mask(torch.ones(more[2].shape, dtype=torch.bool))
    assert rewrite([(held[0], more[0]), (held[1], more[1]), (held[2], full)]) == [True, False, False]
    changed = [
        not all(torch.equal(a, b) for a, b in zip(kept, (t for one in lists for t in one[-3:]), strict=True))
        for kept, lists in zip(before, held, strict=True)
    ]
    assert changed == [True, False, False]
    taps = build([(problems[1], more[1])])[0]
    assert all(isinstance(one, Taps) for one in taps)
    assert rewrite([(taps, others[1])]) == [False]


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize(
    ("layers", "launches"), [(STRUCTURED, 4), (LAYERS[-2:], 4), (LAYERS, 6), ((), 0)],
    ids=["strips", "taps", "both", "none"],
)  # fmt: skip
def test_launches_and_reads_do_not_follow_the_number_of_layers(native, work, generator, layers, launches, times):
    """One launch looks at the patterns and is read, the others make the lists."""
    layers = layers * times
    held = build(
        [(problems_of(layer), pattern) for layer, pattern in zip(layers, drawn(layers, generator), strict=True)]
    )
    new = drawn(layers, generator)
    work.clear()
    before = native.shim_launches()
    assert all(rewrite([*zip(held, new, strict=True)]))
    assert native.shim_launches() - before == launches
    assert work == ["copy", "cuda_block_strips", "copy", "cuda_lists"] * bool(layers)


# ---- the backend
def test_patterns_hand_their_lists_on(native, generator):  # noqa: ARG001
    """For the problems that the old pattern has met; a new one that has lists, or none to follow, is left alone."""
    backend, old, new = CudaBackend(), drawn(LAYERS, generator), drawn(LAYERS, generator, density=0.2)
    cases = [case_of(layer) for layer in LAYERS]
    for pattern, case in zip(old[:-1], cases, strict=False):
        backend._list(pattern, case, backward=False)
    backend._list(old[0], cases[0], backward=True)
    given = backend._list(new[1], cases[1], backward=True)
    backend.hand_on([Change(a.column, b) for a, b in zip(old, new, strict=True)])
    counts = [len(backend._lists.of(pattern.column)) for pattern in new]
    assert counts == [2, 1, *[1] * (len(LAYERS) - 3), 0]
    assert backend._list(new[1], cases[1], backward=True) is given
    for pattern, case in zip(new[:-1], cases, strict=False):
        found = backend._list(pattern, case, backward=pattern is new[1])
        ((wanted,),) = build([([problem_of(case, backward=pattern is new[1])], pattern)])
        same(found, wanted)


def test_changes_are_rewritten_together(native, work, generator):  # noqa: ARG001
    backend, old, new = CudaBackend(), drawn(LAYERS, generator), drawn(LAYERS, generator)
    for layer, pattern in zip(LAYERS, old, strict=True):
        for backward in (False, True):
            backend._list(pattern, case_of(layer), backward=backward)
    work.clear()
    assert backend.rewrite([Change(a.column, b) for a, b in zip(old, new, strict=True)]) == [True] * len(LAYERS)
    assert work == ["copy", "cuda_block_strips", "copy", "cuda_lists"]


def test_patterns_without_lists_are_not_looked_at(work, generator):
    """As on a machine without a device, or before the first product."""
    backend, (pattern, other) = CudaBackend(), (drawn(LAYERS[:1], generator)[0] for _ in range(2))
    assert backend.rewrite([Change(pattern.column, other)]) == [True]
    backend.hand_on([Change(pattern.column, other)])
    assert backend.rewrite([]) == []
    assert work == []
    assert len(backend._lists) == 0
