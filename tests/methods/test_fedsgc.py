"""FedSGC's guided swap and its directions against numbers worked out by hand, and against dense networks in float64."""

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ConfigError
from fedsparse.methods.fedsgc import FedSGC, guided_swap
from fedsparse.nn import read_weights
from fedsparse.pattern import Pattern, parse
from fedsparse.wire import SignMap, SparseVector
from tests.federated.small_run import SpyEngine, go, same_bits, small_method, small_plan
from tests.methods.local import ROUND, first, hosted, kept, positions, probe_gradients, start

UP = torch.ones(4, dtype=torch.int8)


# ---- the swap
def swapped(*, guided, direction=UP, values=(2.0, 1.0), moved=(-1.0, 1.0), gradients=(-4.0, 5.0), count=1):
    pattern = Pattern.from_flat((1, 4), torch.tensor([0, 1]))
    found = SparseVector(4, torch.tensor([2, 3]), torch.tensor(gradients))
    new = guided_swap(pattern, torch.tensor(values), torch.tensor(moved), found, direction, count=count, guided=guided)
    return new.flat.tolist()


def test_what_moves_against_the_direction_goes_and_what_would_follow_it_comes():
    # 0 moved down where the model moved up, so it goes although 1 is smaller; descent at 2 goes up, at 3 down.
    assert swapped(guided=1) == [1, 2]


def test_without_guidance_or_direction_magnitudes_decide():
    assert swapped(guided=0) == [0, 3]
    assert swapped(guided=1, direction=torch.zeros(4, dtype=torch.int8)) == [0, 3]


def test_guidance_without_a_match_falls_back_to_magnitudes():
    # Both kept weights moved along, and descent disagrees at both pruned ones.
    assert swapped(guided=1, moved=(1.0, 1.0), gradients=(4.0, 5.0)) == [0, 3]


def test_each_side_is_guided_by_itself():
    assert swapped(guided=1, gradients=(4.0, 5.0)) == [1, 3]
    assert swapped(guided=1, moved=(1.0, 1.0)) == [0, 2]


def test_the_last_weight_stays():
    assert swapped(guided=1, count=2) == [1, 2]


def test_larger_units_are_guided_by_all_their_weights():
    pattern = Pattern.from_mask(torch.tensor([[True, True, False, False]] * 2), parse("vector:2"))
    values, moved = torch.tensor([2.0, 1.0, 2.0, 1.0]), torch.tensor([-3.0, 1.0, 1.0, 1.0])
    found = SparseVector(8, torch.tensor([2, 3, 6, 7]), torch.tensor([-4.0, 5.0, 1.0, 5.0]))
    up = torch.ones(8, dtype=torch.int8)
    # Column 0 moved by -3 and 1, against the direction in all; descent of column 2 goes up by 4 and down by 1.
    assert guided_swap(pattern, values, moved, found, up, count=2, guided=2).flat.tolist() == [1, 2, 5, 6]
    assert guided_swap(pattern, values, moved, found, up, count=2, guided=0).flat.tolist() == [0, 3, 4, 7]


def test_guided_swaps_come_first_and_the_rest_goes_by_magnitude():
    pattern = Pattern.from_flat((2, 4), torch.arange(5))
    values, moved = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0])
    found = SparseVector(8, torch.tensor([5, 6, 7]), torch.tensor([-1.0, 9.0, 8.0]))
    up = torch.ones(8, dtype=torch.int8)
    # One of the three that moved down: the smallest of them, 2. Then the smallest of all that remain: 4.
    # Only 5 would go up; then the largest gradient of the others, 6.
    new = guided_swap(pattern, values, moved, found, up, count=2, guided=1)
    assert new.flat.tolist() == [0, 1, 3, 5, 6]
    # Guidance for two finds a second one to drop, 1, and nothing more to grow.
    new = guided_swap(pattern, values, moved, found, up, count=2, guided=2)
    assert new.flat.tolist() == [0, 3, 4, 5, 6]


def test_a_client_swaps_by_its_own_moves_and_gradients():
    method, weights = small_method("fedsgc", epochs_before=2, guided_share=0.5), start()
    generator = torch.Generator().manual_seed(3)
    direction = {n: SignMap.of(torch.randn(p.size, generator=generator)) for n, p in weights.topology.items()}
    client = hosted(method, weights, extras={"direction": direction})
    assert method.train(client) == {}
    got = read_weights(client.model)

    before = hosted(method, weights)
    before.sgd(epochs=2)
    middle = read_weights(before.model)
    counts, differs = method.swap_counts(weights.topology, ROUND), 0
    for name, gradient in probe_gradients(middle).items():
        mask, sign = kept(middle, name), direction[name].dense().double()
        size, moved = middle.weight(name).flatten(), (middle.weight(name) - weights.weight(name)).flatten()
        guided = counts[name] // 2
        dropped = first(-size.abs(), guided, mask & (sign * moved.sign() < 0))
        grown = first(gradient.abs(), guided, ~mask & (-sign * gradient.sign() > 0))
        assert len(dropped) == len(grown) == guided
        rest = mask.clone()
        rest[list(dropped)] = False
        dropped |= first(-size.abs(), counts[name] - guided, rest)
        rest = ~mask
        rest[list(grown)] = False
        grown |= first(gradient.abs(), counts[name] - guided, rest)
        assert positions(got, name) == positions(middle, name) - dropped | grown
        differs += grown != first(gradient.abs(), counts[name], ~mask)
    assert differs >= 1, "the direction must have changed something"


# ---- directions
def watched(method, **changed):
    """Each round's downloads to the first client of the cohort."""
    plan = small_plan(method, **changed)
    engine, known, downloads = SpyEngine(plan), {}, []
    outcome = go(plan, engine)
    for exchange in engine.exchanges:
        down = wire.decode(exchange[0][0].blob, topologies=known)
        known[down.weights.topology.digest] = down.weights.topology
        downloads.append(down)
    return outcome, engine, downloads, known


def test_adjusting_rounds_are_sent_the_signs_of_the_last_global_move():
    # Adjusting every round, moves include weights that were dropped and grown.
    _, _, downloads, _ = watched(small_method("fedsgc", adjust_every=1, adjust_until=4), rounds=6)
    assert [sorted(down.extras) for down in downloads] == [[], *[["direction"]] * 3, [], []]
    for round in (1, 2, 3):
        old, new = downloads[round - 1].weights, downloads[round].weights
        assert set(downloads[round].extras["direction"]) == set(new.topology)
        for name, found in downloads[round].extras["direction"].items():
            move = new.weight(name).flatten().double() - old.weight(name).flatten().double()
            assert found.dense().tolist() == move.sign().int().tolist()
    changed = [(downloads[r].weights.topology != downloads[r - 1].weights.topology) for r in range(1, 5)]
    assert changed == [False, True, True, True]


def test_only_the_direction_of_the_next_round_is_remembered():
    class Watched(FedSGC):
        def adjust(self, server, updates):
            new = super().adjust(server, updates)
            seen.append(sorted(server.memory))
            return new

    seen = []
    go(small_plan(Watched(density=0.2, adjust_every=2, adjust_until=5), rounds=6))
    assert seen == [[], ["direction"], [], ["direction"], [], []]


# ---- averages
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_clients_without_an_update_count_with_the_old_weights(weight):
    method = small_method("fedsgc", absent_weight=weight)
    _, engine, downloads, known = watched(method, rounds=4, per_round=2)
    plan = small_plan(method)
    old, new = downloads[2].weights, downloads[3].weights
    samples = [len(plan.data.client(request.client_id)) for request, _ in engine.exchanges[2]]
    uploads = [wire.decode(reply.blob, topologies=known).weights for _, reply in engine.exchanges[2]]
    samples, states = [*samples, round(weight * (sum(plan.data.sizes) - sum(samples)))], [*uploads, old]
    bias = sum(n * w.dense["11.bias"].double() for n, w in zip(samples, states, strict=True)) / sum(samples)
    assert torch.allclose(new.dense["11.bias"].double(), bias, rtol=1e-6, atol=1e-9)
    for name in old.topology:
        shares = torch.stack([n * kept(w, name).double() for n, w in zip(samples, states, strict=True)])
        values = torch.stack([w.weight(name).flatten().double() for w in states])
        union = shares.sum(0) > 0
        merged = torch.where(union, (shares * values).sum(0) / shares.sum(0), 0.0)
        assert positions(new, name) == first(merged.abs(), old.topology[name].nnz, union)
        wanted = merged.view(old.topology[name].shape) * new.topology[name].mask()
        assert torch.allclose(new.weight(name).double(), wanted, rtol=1e-6, atol=1e-9)


def test_with_every_client_and_no_guidance_it_is_feddst():
    arguments = {"rounds": 4, "per_round": 6}
    unguided = go(small_plan(small_method("fedsgc", guided_share=0.0), **arguments))
    feddst = go(small_plan(small_method("feddst"), **arguments))
    assert same_bits(unguided, feddst)
    guided = go(small_plan(small_method("fedsgc", guided_share=1.0, adjust_every=1), **arguments))
    assert not same_bits(guided, go(small_plan(small_method("feddst", adjust_every=1), **arguments)))


@pytest.mark.parametrize("setting", ["guided_share", "absent_weight"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError) as raised:
        FedSGC(**{setting: value})
    assert str(raised.value) == f"fedsgc: {setting} = {value}; expected a share in [0, 1]"
