"""Static pruning: which weights are kept, and that it stays that way."""

import pytest
import torch

from fedsparse import pruning
from fedsparse.data import Dataset
from fedsparse.errors import ConfigError, MethodError
from fedsparse.federated import seeds
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.methods.static import Static, few_of_each_class
from fedsparse.pattern import Topology
from fedsparse.pruning.rounding import floor_share
from tests.federated.small_run import CLASSES, SmallNet, go, small_plan

SHAPES = {"0.weight": (8, 1, 3, 3), "3.weight": (24, 8, 3, 3), "6.weight": (32, 24, 3, 3)}
OTHERS = 9170 - 72 - 1728 - 6912


def started(method, *, seed=7, public=None):
    plan = small_plan(method, seed=seed, public=public)
    server = FederatedServer(plan, InlineEngine(plan), Ledger(None))
    return method.start(server)


def test_magnitude_keeps_each_layers_largest_initial_weights():
    weights = started(Static(density=0.2))
    counts = pruning.allocate(SHAPES, 0.2, distribution="erk", others=OTHERS)
    model = SmallNet()
    for name, shape in SHAPES.items():
        initial = model.get_parameter(name).detach()
        smallest_kept = initial.abs().flatten().sort(descending=True).values[counts[name] - 1]
        assert weights.topology[name].shape == shape
        assert torch.equal(weights.topology[name].mask(), initial.abs() >= smallest_kept)
        assert torch.equal(weights.weight(name), initial * (initial.abs() >= smallest_kept))
    assert weights.topology.nnz + OTHERS <= 0.2 * 9170 < weights.topology.nnz + OTHERS + 1


def test_norms_and_the_output_layer_stay_dense():
    weights = started(Static(density=0.2))
    assert set(weights.topology) == set(SHAPES)
    assert weights.dense["11.weight"].shape == (10, 32)
    everything = started(Static(density=0.2, exclude="none"))
    assert set(everything.topology) == {*SHAPES, "11.weight"}
    assert set(started(Static(density=0.2, exclude="ends")).topology) == {"3.weight", "6.weight"}


def test_uniform_and_global_distributions():
    uniform = started(Static(density=0.2, distribution="uniform")).topology
    shares = [pattern.nnz / pattern.size for pattern in uniform.values()]
    assert max(shares) - min(shares) < 0.02
    chosen = started(Static(density=0.2, distribution="global"))
    model = SmallNet()
    kept = torch.cat([model.get_parameter(n).detach()[p.mask()].abs() for n, p in chosen.topology.items()])
    pruned = torch.cat([model.get_parameter(n).detach()[~p.mask()].abs() for n, p in chosen.topology.items()])
    assert kept.min() >= pruned.max()


def test_random_masks_follow_the_seed_of_the_run():
    method = Static(density=0.2, score="random")
    first, again, other = started(method), started(method), started(method, seed=8)
    assert first.topology == again.topology
    assert first.topology != other.topology
    assert first.topology.counts == other.topology.counts == started(Static(density=0.2)).topology.counts


def test_the_mask_of_round_zero_is_the_mask_of_the_end():
    method = Static(density=0.2)
    outcome = go(small_plan(method, rounds=3))
    assert outcome.weights.topology == started(method).topology
    assert [record["masks_changed"] for record in outcome.metrics] == [0, 0, 0]


# ---- scores that look at the network
def public(*labels):
    """Samples of the server with these labels."""
    generator = torch.Generator().manual_seed(3)
    y = torch.tensor(labels)
    return Dataset(torch.randn(len(y), 1, 8, 8, generator=generator), y, CLASSES)


EACH = tuple(range(CLASSES)) * 6  # six samples a class


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_scores_rank_over_all_layers_unless_told_otherwise(score):
    budget = floor_share(0.2, 9170) - OTHERS
    chosen = {}
    for scope in (None, "global", "layer"):
        method = Static(density=0.2, score=score, scope=scope, iterations=2)
        chosen[scope] = started(method, public=public(*EACH)).topology
        assert chosen[scope].nnz == budget
    assert chosen[None] == chosen["global"]
    assert chosen["layer"].counts == pruning.allocate(SHAPES, 0.2, distribution="erk", others=OTHERS)
    assert chosen["global"].counts != chosen["layer"].counts


def test_scope_of_magnitude():
    assert started(Static(density=0.2, scope="layer")).topology == started(Static(density=0.2)).topology
    everywhere = started(Static(density=0.2, distribution="global")).topology
    assert started(Static(density=0.2, scope="global")).topology == everywhere
    assert started(Static(density=0.2, scope="global", distribution="uniform")).topology == everywhere


@pytest.mark.parametrize("score", [pruning.snip, pruning.grasp])
def test_gradient_scores_are_those_of_a_few_public_samples(score):
    data = public(*EACH)
    method = Static(density=0.2, score=score.__name__, shots=2)
    samples = few_of_each_class(data, 2, seeds.generator(7, 0, "server", "shots"))
    assert torch.equal(data.y[samples].sort().values, torch.arange(CLASSES).repeat_interleave(2))
    scores = score(SmallNet(), [data.batch(samples)])
    wanted = pruning.globally({name: scores[name] for name in SHAPES}, floor_share(0.2, 9170) - OTHERS)
    assert started(method, public=data).topology == Topology.from_masks(wanted)


def test_synflow_needs_no_data_and_takes_a_hundred_steps():
    steps = []
    original = pruning.density_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "density_path", lambda *a: steps.append(a) or original(*a))
        weights = started(Static(density=0.1, score="synflow"))
    assert steps == [(0.1, 100, "exponential")]
    path = original(0.1, 100)
    scores = pruning.gradually(SmallNet(), lambda model: pruning.synflow(model, (1, 8, 8)), path, distribution="global")
    assert weights.topology == Topology.from_masks(pruning.globally(scores, floor_share(0.1, 9170) - OTHERS))


def test_a_few_of_each_class():
    data = public(*[0] * 5, *[3] * 2, 7)
    found = few_of_each_class(data, 3, torch.Generator().manual_seed(0))
    assert sorted(data.y[found].tolist()) == [0, 0, 0, 3, 3, 7]
    assert len(set(found.tolist())) == 6
    others = [few_of_each_class(data, 3, torch.Generator().manual_seed(seed)).tolist() for seed in range(8)]
    assert len({tuple(sorted(positions)) for positions in others}) > 1
    assert any(data.y[torch.tensor(positions)].tolist() != sorted(data.y[positions].tolist()) for positions in others)


@pytest.mark.parametrize(("data", "count"), [(None, 0), (public(4), 1)])
def test_gradient_scores_need_samples_of_the_server(data, count):
    with pytest.raises(
        MethodError, match=f"static: snip scores need two samples of the server or more, it has {count}"
    ):
        started(Static(density=0.2, score="snip"), public=data)


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_a_run_on_a_scored_mask(score):
    method = Static(density=0.2, score=score, iterations=3, scope="layer")
    outcome = go(small_plan(method, rounds=2, public=public(*EACH)))
    assert [record["masks_changed"] for record in outcome.metrics] == [0, 0]
    assert outcome.metrics[-1]["nnz"] == floor_share(0.2, 9170) - OTHERS


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("granularity", "iterations", "density"), [("vector:8", 3, 0.3), ("nm:2:4", 1, 0.5)])
def test_scores_rank_whole_units(granularity, iterations, density, scope):
    options = {"density": density, "score": "synflow", "scope": scope, "iterations": iterations}
    found = started(Static(granularity=granularity, **options)).topology
    assert {str(pattern.granularity) for pattern in found.values()} == {granularity}
    for pattern in found.values():
        pattern.granularity.check(pattern.shape, pattern.flat)
        assert pattern.nnz
    if density == 0.3:
        assert floor_share(0.3, 9170) - OTHERS - 8 < found.nnz <= floor_share(0.3, 9170) - OTHERS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "snap"}, "static: score = 'snap'; expected one of magnitude, random, grasp, snip, synflow"),
        ({"scope": "block"}, "static: scope = 'block'; expected layer or global, or nothing"),
        (
            {"scope": "layer", "distribution": "global"},
            "static: scope = 'layer'; expected global, or a distribution of erk, er or uniform",
        ),
        ({"iterations": 0}, "static: iterations = 0; expected at least 1, or nothing"),
        ({"iterations": 2}, "static: iterations = 2; expected 1: magnitude scores do not change between steps"),
        ({"course": "cubic"}, "static: course = 'cubic'; expected one of exponential, linear"),
        ({"shots": 0}, "static: shots = 0; expected at least 1"),
        (
            {"score": "synflow", "granularity": "nm:2:4", "density": 0.5},
            "static: iterations = None; expected 1: granularity 'nm:2:4' allows no densities in between",
        ),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Static(**settings)
