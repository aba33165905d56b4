"""Laws that every registered method keeps, whatever its idea."""

import itertools
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ConfigError
from fedsparse.federated import seeds
from fedsparse.methods.base import DynamicMethod, Method, SparseMethod, find, methods
from fedsparse.methods.roles import Update
from fedsparse.nn import density, sparse_layers
from fedsparse.pattern import Topology, parse
from fedsparse.wire import IndexSet
from tests.federated.small_run import (
    SmallNet,
    SpyEngine,
    bits,
    exact,
    go,
    same_bits,
    small_data,
    small_method,
    small_plan,
)

NAMES = methods()
SPARSE = [name for name in NAMES if issubclass(find(name), SparseMethod)]
PRIVATE = ["fedrandprune"]  # clients train under masks of their own, the global model is dense
SHARED = [name for name in SPARSE if name not in PRIVATE]
DYNAMIC = [name for name in SPARSE if issubclass(find(name), DynamicMethod)]
FIXED = [name for name in SPARSE if find(name).fixed_size]
FREE = [name for name in SPARSE if not find(name).fixed_size]

# What these exchange is drawn or weighed for each weight, not counted per layer.
ANY_NUMBER = ("fedrts", "prunefl")
# These send numbers for every position of a layer.
EVERYWHERE = ("prunefl", "prunefl_fixed")

# Larger units, of which 16 divides neither 8 nor 24 channels, and a density for each.
UNITS = {"vector:8": 0.3, "block:16": 0.3, "nm:2:4": 0.5, "channel": 0.3}
# A free size is what these are about.
NOT_FIXED = ("prunefl",)

# What some methods do beside choosing masks, turned off.
PLAIN = {"penalty": 0.0, "keep": None, "norm_free": False}

ROUNDS = 8
PRUNABLE = {name for name, p in SmallNet().named_parameters() if p.ndim == 4}


@cache
def parameters(name):
    """Trainable ones of a method's network."""
    return sum(p.numel() for p in small_plan(small_method(name)).network().parameters())


@dataclass(frozen=True, eq=False)
class Round:
    """One training exchange as it went over the wire, and the record of its round."""

    record: dict[str, object]
    downloads: list[wire.Payload]
    uploads: list[wire.Payload]

    @property
    def topology(self) -> Topology:
        return self.downloads[0].weights.topology


def train_exchanges(engine):
    """Training exchanges decoded; topologies sent by reference are looked up among all that were sent."""
    known, rounds = {}, []
    for exchange in engine.exchanges:
        downloads, uploads = [], []
        for request, reply in exchange:
            down = wire.decode(request.blob, topologies=known)
            if down.weights is not None:
                known[down.weights.topology.digest] = down.weights.topology
            downloads.append(down)
            uploads.append(wire.decode(reply.blob, topologies=known))
        if downloads[0].task == "train":
            rounds.append((downloads, uploads))
    return rounds


@cache
def watched(name):
    """Outcome, engine and rounds of one run of a method, shared by the tests that only look."""
    torch.set_num_threads(1)
    method = small_method(name)
    plan = small_plan(method, rounds=ROUNDS)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    rounds = [Round(record, *pair) for record, pair in zip(outcome.metrics, train_exchanges(engine), strict=True)]
    return method, outcome, rounds


@pytest.mark.parametrize("name", FIXED)
def test_c1_each_layer_keeps_its_number_of_weights(name):
    _, outcome, rounds = watched(name)
    counts = rounds[0].topology.counts
    assert all(download.weights.topology.counts == counts for r in rounds for download in r.downloads)
    sizes = {n: pattern.size for n, pattern in rounds[0].topology.items()}
    assert outcome.weights.topology.counts == (counts if name in SHARED else {})
    assert [r.record["nnz"] for r in rounds] == [sum((counts if name in SHARED else sizes).values())] * ROUNDS


@pytest.mark.parametrize("name", FREE)
def test_c1_free_sizes_stay_within_the_density(name):
    method, outcome, rounds = watched(name)
    topologies = [r.topology for r in rounds[1:]] + [outcome.weights.topology]
    others = parameters(name) - sum(p.size for p in topologies[0].values())
    for r, topology in zip(rounds, topologies, strict=True):
        assert min(topology.counts.values()) >= 1
        assert r.record["nnz"] == topology.nnz
        assert r.record["density"] == (topology.nnz + others) / parameters(name) <= method.density
    assert len({tuple(topology.counts.values()) for topology in topologies}) > 1, "sizes of layers must change"


@pytest.mark.parametrize("name", SPARSE)
def test_c2_pruned_weights_are_zero_in_the_model_and_absent_from_uploads(name):
    method, outcome, rounds = watched(name)
    for r in rounds:
        own_masks = method.client_masks and r.record["kind"] == "adjust"
        for download, upload in zip(r.downloads, r.uploads, strict=True):
            if not method.weights_back:
                assert upload.weights is None
                continue
            assert (upload.weights.topology == download.weights.topology) is not own_masks
            assert {n: p.shape for n, p in upload.weights.topology.items()} == {
                n: p.shape for n, p in r.topology.items()
            }
            assert {n: len(v) for n, v in upload.weights.values.items()} == r.topology.counts
    for weight_name, layer in sparse_layers(outcome.model).items():
        mask = outcome.weights.topology[weight_name].mask()
        assert torch.equal(layer.mask, mask)
        assert int((layer.weight[~mask] != 0).sum()) == 0
        assert int((layer.weight[mask] != 0).sum()) > 0


@pytest.mark.parametrize("name", SHARED)
def test_c2_grown_weights_start_at_exactly_zero_and_kept_ones_stay(name):
    method, _, rounds = watched(name)
    for before, after in itertools.pairwise(rounds):
        averaged = method.aggregate(None, _updates(before)) if type(method).aggregate is Method.aggregate else None
        for layer in after.topology:
            old, new = before.topology[layer].mask(), after.topology[layer].mask()
            weight = after.downloads[0].weights.weight(layer)
            # Where clients change masks, what one of them has grown comes trained; nobody else's growth does.
            untrained = new & ~old
            for upload in before.uploads if method.client_masks else ():
                untrained &= ~upload.weights.topology[layer].mask()
            assert torch.equal(weight[untrained], torch.zeros(int(untrained.sum())))
            if averaged is not None:
                assert torch.equal(weight[new & old], averaged.weight(layer)[new & old])


def _updates(r):
    cohort = seeds.cohort(7, r.record["round"], clients=6, size=4)
    sizes = small_data().sizes
    return [Update(k, sizes[k], u.weights, u.extras) for k, u in zip(cohort, r.uploads, strict=True)]


@pytest.mark.parametrize("name", [name for name in SHARED if name in FIXED])
def test_c3_the_density_is_kept(name):
    method, outcome, rounds = watched(name)
    kept = rounds[0].topology.nnz
    slack = (len(rounds[0].topology) + 0.02 * kept) / parameters(
        name
    )  # floors, and the 2 % that candidates may differ by
    assert method.density - slack < density(outcome.model) <= method.density
    others = parameters(name) - sum(p.size for p in rounds[0].topology.values())
    assert [r.record["density"] for r in rounds] == [(kept + others) / parameters(name)] * ROUNDS


@pytest.mark.parametrize("name", NAMES)
def test_c4_only_prunable_weights_have_masks(name):
    _, outcome, rounds = watched(name)
    wanted = PRUNABLE if name in SPARSE else set()
    assert all(set(r.topology) == wanted for r in rounds)
    initial = small_plan(small_method(name)).network().state_dict()
    dense = {n: t.shape for n, t in initial.items() if name in PRIVATE or n not in wanted}
    assert {n: t.shape for n, t in outcome.weights.dense.items()} == dense


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).weights_back])
def test_c5_a_single_client_is_its_own_average(name):
    plan = small_plan(small_method(name), rounds=1, sizes=(40,), per_round=1)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    ((_, (upload,)),) = train_exchanges(engine)
    assert outcome.metrics[0]["kind"] == "train"
    for weight, tensor in upload.weights.dense.items():
        assert torch.equal(outcome.weights.dense[weight], tensor), weight
    for weight, pattern in upload.weights.topology.items():
        assert torch.equal(pattern.gather(outcome.weights.weight(weight)), upload.weights.values[weight]), weight


@pytest.mark.parametrize("name", NAMES)
def test_c5_the_order_in_which_clients_run_changes_no_bit(name):
    _, outcome, _ = watched(name)
    plan = small_plan(small_method(name), rounds=ROUNDS)
    other = go(plan, SpyEngine(plan, reverse=True))
    assert same_bits(outcome, other)
    assert exact(outcome.metrics) == exact(other.metrics)


@pytest.mark.parametrize("name", NAMES)
def test_c8_the_same_seed_gives_the_same_bits(name, tmp_path):
    _, outcome, _ = watched(name)
    again = go(small_plan(small_method(name), rounds=ROUNDS), folder=tmp_path)
    assert same_bits(outcome, again)
    assert exact(outcome.metrics) == exact(again.metrics)


@pytest.mark.parametrize("name", NAMES)
def test_c8_a_stopped_run_goes_on_to_the_same_bits(name, tmp_path):
    _, outcome, _ = watched(name)
    plan = small_plan(small_method(name), rounds=ROUNDS)
    for _ in range(2):  # before round 3, which adjusts nothing, and before round 6, which may
        go(plan, folder=tmp_path, stop_after=3, resume=True)
    resumed = go(plan, folder=tmp_path, resume=True)
    assert same_bits(outcome, resumed)
    assert exact(outcome.metrics) == exact(resumed.metrics)


@pytest.mark.parametrize("name", NAMES)
def test_c8_another_seed_gives_other_numbers(name):
    _, outcome, _ = watched(name)
    other = go(small_plan(small_method(name), rounds=2, seed=8))
    assert other.metrics[1]["loss"] != outcome.metrics[1]["loss"]


@dataclass(frozen=True, kw_only=True)
class Pinned(SparseMethod):
    """Static pruning that starts where another method does."""

    name: ClassVar[str] = "pinned"
    source: Method

    def start(self, server):
        return self.source.start(server)


@pytest.mark.parametrize("name", [name for name in DYNAMIC if name in FIXED])
def test_c9_without_swaps_it_is_static_pruning(name):
    method = small_method(name, swap_fraction=0.0, candidates=1, **PLAIN)
    # With all clients in the cohort, so that it says the same of methods in which the absent count.
    moving = go(small_plan(method, rounds=6, per_round=6))
    fixed = go(small_plan(Pinned(source=method, density=method.density), rounds=6, per_round=6))
    assert same_bits(moving, fixed)
    told = ("accuracy", "loss", "density", "nnz", "masks_changed", "flops_modelled", "clients")
    assert [[r[key] for key in told] for r in moving.metrics] == [[r[key] for key in told] for r in fixed.metrics]
    assert "adjust" in [r["kind"] for r in moving.metrics]


@pytest.mark.parametrize("name", [name for name in FIXED if find(name).weights_back])  # others round
def test_c10_at_density_one_it_is_dense_averaging(name):
    full = go(small_plan(small_method(name, density=1.0, candidates=1, **PLAIN), rounds=4, per_round=6))
    dense = go(small_plan(small_method("fedavg"), rounds=4, per_round=6))
    assert [r["density"] for r in full.metrics] == [1.0] * 4
    assert [r["masks_changed"] for r in full.metrics] == [0] * 4
    weights = bits(full)
    for weight, tensor in bits(dense).items():
        assert torch.allclose(weights[weight].float(), tensor.float(), rtol=1e-4, atol=1e-5), weight
    for mine, theirs in zip(full.metrics, dense.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.01)
        assert mine["nnz"] == theirs["nnz"]
        assert mine["flops_modelled"] == theirs["flops_modelled"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PRIVATE])
def test_masks_move_in_adjusting_rounds_and_in_no_others(name):
    method, outcome, rounds = watched(name)
    adjusting = [r.record["round"] for r in rounds if r.record["kind"] == "adjust"]
    assert adjusting == ([2, 4, 6] if name in DYNAMIC else [])
    topologies = [r.topology for r in rounds] + [outcome.weights.topology]
    for number, r in enumerate(rounds):
        changed = topologies[number + 1].changed_positions(topologies[number])
        assert r.record["masks_changed"] == changed
        assert (changed > 0) == (number in adjusting)
        if changed and name not in ANY_NUMBER:
            counts = method.swap_counts(topologies[number], number)
            swapping = len(r.uploads) if method.client_masks else 1
            assert changed <= 2 * sum(counts.values()) * swapping
    if name in DYNAMIC:
        assert topologies[-1] != topologies[0]


def uploaded_positions(extras):
    """Sets of positions in the extras of an upload, by weight name."""
    found = {}
    for section in extras.values():
        if not isinstance(section, IndexSet):
            found.update({n: s for n, s in section.items() if isinstance(s, IndexSet)})
    return found


@pytest.mark.parametrize("name", [name for name in DYNAMIC if name not in EVERYWHERE])
def test_uploads_of_adjusting_rounds_are_bounded_and_of_pruned_positions(name):
    method, _, rounds = watched(name)
    for r in rounds:
        number = r.record["round"]
        counts = method.swap_counts(r.topology, number)
        asked = method.asked(r.topology, number) if hasattr(method, "asked") else counts
        for upload in r.uploads:
            positions = uploaded_positions(upload.extras)
            if r.record["kind"] == "train" or method.client_masks:
                assert upload.extras == {}
                moved = upload.weights.topology.changed_positions(r.topology)
                assert moved == (2 * sum(counts.values()) if r.record["kind"] == "adjust" else 0)
                continue
            assert set(positions) == {layer for layer in asked if counts[layer]}
            for layer, sent in positions.items():
                assert 0 < len(sent.indices) <= asked[layer]
                assert sent.size == r.topology[layer].size
                assert not r.topology[layer].mask().flatten()[sent.indices].any()


@pytest.mark.parametrize("name", EVERYWHERE)
def test_dense_uploads_come_in_adjusting_rounds_only(name):
    method, _, rounds = watched(name)
    for r in rounds:
        layers = {layer for layer, count in method.swap_counts(r.topology, r.record["round"]).items() if count}
        for upload in r.uploads:
            if r.record["kind"] == "train":
                assert upload.extras == {}
                continue
            squares = upload.extras["squares"]
            assert set(squares) == (layers if method.fixed_size else set(r.topology))
            assert {layer: square.shape for layer, square in squares.items()} == {
                layer: r.topology[layer].shape for layer in squares
            }


def test_fedtiny_changes_its_block_only_and_as_many_weights_as_it_asks_for():
    method, outcome, rounds = watched("fedtiny")
    topologies = [r.topology for r in rounds] + [outcome.weights.topology]
    for number in (2, 4, 6):
        before, after = topologies[number], topologies[number + 1]
        block = method.block(before, number)
        counts = method.swap_counts(before, number)
        assert {n for n in before if before[n] != after[n]} <= set(block)
        # Four clients send a_l candidates each, so none is missing.
        assert after.changed_positions(before) == 2 * sum(counts[n] for n in block)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name):
    _, outcome, _ = watched(name)
    accuracy = [r["accuracy"] for r in outcome.metrics]
    assert accuracy[-1] > 0.3, accuracy
    assert accuracy[-1] > accuracy[0]


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_defaults_that_a_machine_can_read(name):
    kind = find(name)
    method = kind()
    assert kind.name == name
    assert all(isinstance(getattr(method, f.name), bool | int | float | str | None) for f in fields(method))


# ---- larger units
def in_units(name, granularity, **changed):
    """A method at settings that adjust in each round after the first."""
    settings = {"density": UNITS[granularity], "adjust_every": 1, "initial_epochs": 1, "initial_adjustments": 2}
    pool = 1 if granularity.startswith("nm") else 2
    return small_method(name, **{**settings, "candidates": pool, "granularity": granularity, **changed})


@pytest.mark.parametrize("granularity", UNITS)
@pytest.mark.parametrize("name", SPARSE)
def test_masks_are_made_of_whole_units_in_every_round(name, granularity):
    if name in NOT_FIXED and granularity.startswith("nm"):
        with pytest.raises(ConfigError, match="granularity = 'nm:2:4'; expected one that leaves sizes free"):
            in_units(name, granularity)
        return
    method = in_units(name, granularity)
    # All clients take part, because the masks of absent ones hold what coarse units could win by.
    plan = small_plan(method, rounds=3, sizes=(24, 20, 16), per_round=3)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    rounds = [Round(r, *pair) for r, pair in zip(outcome.metrics, train_exchanges(engine), strict=True)]
    unit, others = parse(granularity), parameters(name) - sum(p.size for p in rounds[0].topology.values())
    for topology in (*(r.topology for r in rounds), outcome.weights.topology):
        for pattern in topology.values():
            assert pattern.granularity == unit
            unit.check(pattern.shape, pattern.flat)
        if topology and unit.share is None:
            largest = max(unit.tiling(pattern.shape).size for pattern in topology.values())
            kept = (topology.nnz + others) / parameters(name)
            assert method.density - len(topology) * largest / parameters(name) < kept <= method.density
    for r in rounds:
        for upload in r.uploads if method.weights_back else ():
            assert all(pattern.granularity == unit for pattern in upload.weights.topology.values())
            for pattern in upload.weights.topology.values():
                unit.check(pattern.shape, pattern.flat)
    if name in FIXED and name in SHARED:
        assert len({tuple(r.topology.counts.values()) for r in rounds}) == 1
    changed = [r.record["masks_changed"] > 0 for r in rounds]
    assert changed == ([False, True, True] if name in DYNAMIC else [False] * 3)


@pytest.mark.parametrize(
    ("name", "granularity"), [("fedrts", "channel"), ("fedsgc", "nm:2:4"), ("prunefl", "block:16")]
)
def test_runs_in_larger_units_go_on_to_the_same_bits(name, granularity, tmp_path):
    plan = small_plan(in_units(name, granularity), rounds=3, sizes=(24, 20, 16), per_round=3)
    whole = go(plan)
    go(plan, folder=tmp_path, stop_after=2, resume=True)
    resumed = go(plan, folder=tmp_path, resume=True)
    assert same_bits(whole, resumed)
    assert exact(whole.metrics) == exact(resumed.metrics)


@pytest.mark.parametrize("name", [name for name in SPARSE if name not in NOT_FIXED])
def test_nm_has_its_own_density(name):
    with pytest.raises(ConfigError, match=rf"{name}: density = 0.2; expected 0.5, which granularity 'nm:2:4' fixes"):
        in_units(name, "nm:2:4", density=0.2)
