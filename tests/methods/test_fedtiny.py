"""FedTiny's parts against numbers worked out by hand, and its selection on real clients."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsparse import wire
from fedsparse.errors import ClientError, ConfigError, MethodError
from fedsparse.federated import seeds
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.methods.fedtiny import FedTiny, _pooled_statistics, lowest_pooled_loss
from fedsparse.methods.roles import Download, Update
from fedsparse.nn import write_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import SparseVector
from tests.federated.small_run import SmallNet, SpyEngine, go, norm_free, small_data, small_method, small_plan


def vector(size, entries):
    positions = torch.tensor(list(entries), dtype=torch.int64)
    return SparseVector(size, positions, torch.tensor(list(entries.values()), dtype=torch.float32))


def fake_server(topology, values, round):
    return SimpleNamespace(round=round, weights=Weights(topology, values, {}))


def layers(count):
    """Layers of eight weights, the first four of which are kept."""
    mask = (torch.arange(8) < 4).view(2, 4)
    return Topology.from_masks({f"{n}.weight": mask for n in range(count)})


# ---- blocks
def test_blocks_go_from_the_output_back_to_the_input():
    method, topology = FedTiny(adjust_every=10, blocks=5), layers(5)
    order = [method.block(topology, round) for round in (10, 20, 30, 40, 50, 60)]
    assert order == [["4.weight"], ["3.weight"], ["2.weight"], ["1.weight"], ["0.weight"], ["4.weight"]]


def test_blocks_are_of_neighbours_and_as_equal_as_can_be():
    topology = layers(7)
    blocks = [FedTiny(adjust_every=2, blocks=3).block(topology, round) for round in (2, 4, 6)]
    assert [[name[0] for name in block] for block in blocks] == [["5", "6"], ["3", "4"], ["0", "1", "2"]]
    assert FedTiny(adjust_every=1, blocks=5).block(layers(2), 3) == ["1.weight"]
    assert FedTiny(blocks=1).block(topology, 10) == list(topology)


# ---- adjustment
def adjusted(updates, *, round=50, swap_fraction=0.5):
    topology = layers(2)
    values = {name: torch.tensor([0.9, -0.1, 0.3, -0.5]) for name in topology}
    method = FedTiny(adjust_every=10, adjust_until=100, blocks=2, swap_fraction=swap_fraction)
    return topology, method.adjust(fake_server(topology, values, round), updates)


def test_the_smallest_weights_give_way_to_the_largest_mean_gradients():
    # Round 50 of 100: a quarter of four kept weights, so one, in layer 1 (turns 1, 0, 1, 0, 1).
    first = Update(0, 1, None, {"top": {"1.weight": vector(8, {5: 4.0})}})
    second = Update(1, 3, None, {"top": {"1.weight": vector(8, {5: -1.2, 7: 0.5})}})
    # |mean| at 5: (4 - 3.6) / 4 = 0.1; at 7: 0.375
    before, after = adjusted([first, second])
    assert after["0.weight"] is before["0.weight"]
    assert after["1.weight"].flat.tolist() == [0, 2, 3, 7]


def test_fewer_candidates_than_wanted_swap_fewer():
    one = Update(0, 1, None, {"top": {"1.weight": vector(8, {6: 1.0})}})
    assert adjusted([one], swap_fraction=1.0)[1]["1.weight"].flat.tolist() == [0, 2, 3, 6]
    nothing = Update(0, 1, None, {"top": {"1.weight": vector(8, {})}})
    before, after = adjusted([nothing])
    assert after == before


# ---- what clients may answer
ASKED = Download(
    Weights(layers(2), {n: torch.ones(4) for n in layers(2)}, {}), {"counts": {"0.weight": 0, "1.weight": 2}}
)


@pytest.mark.parametrize(
    ("extras", "reason"),
    [
        ({}, "the upload's 'top' is missing; expected dict"),
        ({"top": 3}, "the upload's 'top' is of type int; expected dict"),
        ({"top": {}}, "of the upload's 'top', '1.weight' is missing"),
        (
            {"top": {"0.weight": vector(8, {}), "1.weight": vector(8, {})}},
            "of the upload's 'top', '0.weight' was not asked for",
        ),
        ({"top": {"1.weight": 3}}, "the upload's '1.weight' is of type int; expected SparseVector"),
        (
            {"top": {"1.weight": vector(80, {70: 9.0})}},
            "the upload's 'top' has 1 of 80 positions of '1.weight'; expected at most 2 of 8",
        ),
        (
            {"top": {"1.weight": vector(8, {4: 1.0, 5: 1.0, 6: 1.0})}},
            "the upload's 'top' has 3 of 8 positions of '1.weight'; expected at most 2 of 8",
        ),
        (
            {"top": {"1.weight": vector(8, {1: 9.0, 6: 1.0})}},
            "the upload's 'top' has position 1 of '1.weight', which is kept, not pruned",
        ),
    ],
)
def test_candidates_that_were_not_asked_for_are_refused(extras, reason):
    with pytest.raises(ClientError) as raised:
        FedTiny().check(ASKED, Update(0, 5, None, extras))
    assert str(raised.value) == reason


def test_what_was_asked_for_passes():
    FedTiny().check(ASKED, Update(0, 5, None, {"top": {"1.weight": vector(8, {4: 1.0, 6: -1.0})}}))
    FedTiny().check(ASKED, Update(0, 5, None, {"top": {"1.weight": vector(8, {})}}))
    FedTiny().check(Download(ASKED.weights), Update(0, 5, None, {}))


def test_other_rounds_keep_the_masks():
    updates = [Update(0, 1, None, {"top": {"1.weight": vector(8, {6: 1.0})}})]
    assert [adjusted(updates, round=round)[1] for round in (0, 45, 100, 110)] == [None] * 4


def test_the_download_asks_for_the_counts_of_the_block():
    topology = layers(5)
    values = {name: torch.ones(4) for name in topology}
    method = FedTiny(adjust_every=10, adjust_until=100, swap_fraction=1.0)
    asked = method.download(fake_server(topology, values, 20), 0)
    # 0.5 * (1 + cos(pi / 5)) = 0.904508: three of four
    assert asked.extras == {"counts": {"3.weight": 3}}
    assert method.download(fake_server(topology, values, 21), 0).extras == {}


# ---- selection
def test_losses_are_pooled_over_samples():
    # c0: (10 * 1.0 + 30 * 0.5) / 40 = 0.625; c1: (10 * 0.2 + 30 * 0.9) / 40 = 0.725. A plain mean would pick c1.
    replies = [(torch.tensor([10.0, 2.0]), 10), (torch.tensor([15.0, 27.0]), 30)]
    assert lowest_pooled_loss(replies) == 0
    assert lowest_pooled_loss([(torch.tensor([4.0, 4.0, 3.0]), 2)]) == 2
    assert lowest_pooled_loss([(torch.tensor([4.0, 4.0]), 2)]) == 0


def test_statistics_are_pooled_over_samples():
    updates = [
        Update(k, 1, None, {"samples": n, "statistics": {"0": {"norm.running_mean": torch.tensor([mean, 1.0])}}})
        for k, n, mean in ((0, 10, 0.0), (1, 30, 4.0))
    ]
    assert _pooled_statistics(updates, 1)[0]["norm.running_mean"].tolist() == [3.0, 1.0]


def server_of(method, *, engine=None, **changed):
    plan = small_plan(method, **changed)
    server = FederatedServer(plan, engine or InlineEngine(plan), Ledger(None))
    server.begin(0)
    return server


def test_the_pool_stays_within_two_per_cent_below_the_density():
    method = small_method("fedtiny", candidates=6)
    server = server_of(method)
    base = method.initial_topology(SmallNet(), "magnitude", torch.Generator())
    pool = method.pool(server.weights, server)
    assert len({candidate.digest for candidate in pool}) == 6
    for candidate in pool:
        assert 0.98 * base.nnz <= candidate.nnz <= base.nnz
        for name, pattern in candidate.items():
            assert base[name].nnz * 0.5 - 1 <= pattern.nnz <= base[name].nnz * 1.5
            initial = SmallNet().get_parameter(name).detach().abs()
            assert initial[pattern.mask()].min() >= initial.masked_fill(pattern.mask(), 0).max()


def test_a_single_candidate_has_the_densities_of_the_distribution():
    for density, candidates in ((0.2, None), (1.0, 1)):
        method = FedTiny(density=density, candidates=candidates)
        pool = method.pool(server_of(method).weights, server_of(method))
        assert pool == [method.initial_topology(SmallNet(), "magnitude", torch.Generator())]


def test_the_size_of_the_pool_follows_the_density():
    for density, size in ((0.1, 1), (0.06, 2)):
        method = FedTiny(density=density)
        assert len(method.pool(server_of(method).weights, server_of(method))) == size


def test_a_pool_that_cannot_be_drawn_says_so():
    method = FedTiny(density=1.0, candidates=2, exclude="none")
    server = server_of(method, build_model=lambda: nn.Sequential(*[nn.Linear(3, 3) for _ in range(40)]))
    with pytest.raises(MethodError, match=r"^fedtiny: no candidate with 360 kept weights .* use candidates = 1$"):
        method.pool(server.weights, server)


def development(method, client):
    """Development split of a client, drawn as the client draws it."""
    data = small_data().client(client)
    generator = seeds.generator(7, 0, client, "development")
    count = max(2, round(method.dev_share * len(data)))
    return data.batch(torch.randperm(len(data), generator=generator)[:count])


def test_selection_picks_the_candidate_of_the_lowest_loss_and_its_statistics():
    method = small_method("fedtiny", candidates=3)
    server = server_of(method)
    pool = method.pool(server.weights, server)
    chosen = method.start(server)

    samples = [development(method, client) for client in server.cohort]
    losses, pooled = [], []
    for candidate in pool:
        statistics = []
        for x, _ in samples:
            model = SmallNet()
            write_weights(model, server.weights.moved_to(candidate))
            norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0  # the statistics of the one batch
            model.train()(x)
            statistics.append([(norm.running_mean.double(), norm.running_var.double()) for norm in norms])
        total = sum(len(x) for x, _ in samples)
        weighted = [
            [sum(len(x) * s[n][kind] for s, (x, _) in zip(statistics, samples, strict=True)) / total for kind in (0, 1)]
            for n in range(3)
        ]
        model = SmallNet()
        write_weights(model, server.weights.moved_to(candidate))
        for norm, (mean, var) in zip([m for m in model if isinstance(m, nn.BatchNorm2d)], weighted, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
        with torch.no_grad():
            model.eval()
            losses.append(sum(float(cross_entropy(model(x), y, reduction="sum")) for x, y in samples) / total)
        pooled.append(weighted)

    best = losses.index(min(losses))
    assert sorted(losses)[1] - min(losses) > 1e-4, "the candidates must differ for the choice to mean anything"
    assert chosen.topology == pool[best]
    for path, (mean, var) in zip(("1", "4", "7"), pooled[best], strict=True):
        assert torch.allclose(chosen.dense[f"{path}.running_mean"].double(), mean, atol=1e-6)
        assert torch.allclose(chosen.dense[f"{path}.running_var"].double(), var, atol=1e-6)
    for name in pool[best]:
        assert torch.equal(chosen.weight(name), server.weights.weight(name) * pool[best][name].mask())


def test_selection_takes_two_exchanges_and_leaves_nothing_behind():
    method = small_method("fedtiny")
    plan = small_plan(method, rounds=1)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    assert [len(exchange) for exchange in engine.exchanges] == [4, 4, 4]
    requests = [exchange[0][0] for exchange in engine.exchanges]
    assert [request.weights_back for request in requests] == [False, False, True]
    first, second, _ = (request.blob for request in requests)
    assert set(wire.decode(first).extras["pool"]) == {"0", "1"}
    assert wire.decode(second).weights is None
    sent = sum(len(request.blob) for exchange in engine.exchanges for request, _ in exchange)
    assert outcome.metrics[0]["bytes_down"] == sent
    kept = [engine.kept(request.client_id) for request, _ in engine.exchanges[-1]]
    assert all(state.held and not state.memory for state in kept)


def test_public_data_is_trained_on_before_the_pool_is_drawn():
    public = small_data((64,), seed=3).train
    method = small_method("fedtiny", candidates=1, pretrain_epochs=2)
    plain, pretrained = server_of(method), server_of(method, public=public)
    assert method.start(pretrained).topology != method.start(plain).topology
    assert method.start(pretrained).topology.counts == method.start(plain).topology.counts
    untouched = small_method("fedtiny", candidates=1, pretrain_epochs=0)
    assert untouched.start(server_of(untouched, public=public)).topology == method.start(plain).topology


def test_a_client_with_a_single_sample_takes_no_part_in_the_selection(tmp_path):
    plan = small_plan(small_method("fedtiny"), rounds=1, sizes=(1, 20, 30), per_round=3)
    outcome = go(plan, folder=tmp_path)
    assert (outcome.metrics[0]["clients"], outcome.metrics[0]["clients_failed"]) == (2, 1)
    lines = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in lines if line["client"] == 0]
    assert reasons == [
        "fedtiny: batch-norm statistics need two samples, the client has one",
        "fedtiny: the client holds no candidates, it failed to adapt them",
        "there is nothing to train on: 1 samples in batches of 16, of which batch norm needs two or more",
    ]


def test_small_clients_adapt_on_two_samples_where_maps_are_of_one_pixel():
    class Narrow(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 20, 8), nn.BatchNorm2d(20), nn.ReLU(), nn.Flatten(), nn.Linear(20, 10))
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.1, 0.1, generator=torch.Generator().manual_seed(1))

    method = small_method("fedtiny", dev_share=0.1, exclude="output", density=0.5)
    plan = small_plan(method, rounds=1, sizes=(6, 9), per_round=2, build_model=Narrow)
    assert go(plan).metrics[0]["clients"] == 2


def test_without_batch_norm_the_losses_alone_decide():
    plan = small_plan(small_method("fedtiny", density=0.3), rounds=1, build_model=norm_free)
    assert go(plan).metrics[0]["clients"] == 4


def test_a_selection_without_any_client_ends_the_run():
    plan = small_plan(small_method("fedtiny"), rounds=1, sizes=(1, 1), per_round=2)
    with pytest.raises(ClientError, match=r"^round 0: 0 of 2 clients delivered a usable update for 'adapt_batchnorm'"):
        go(plan)


def test_a_selection_needs_as_many_clients_as_any_exchange():
    plan = small_plan(small_method("fedtiny"), rounds=1, sizes=(1, 20, 30), per_round=3, min_clients=3)
    with pytest.raises(ClientError, match=r"^round 0: 2 of 3 .* for 'adapt_batchnorm', engine\.min_clients asks for 3"):
        go(plan)


class Lying(SpyEngine):
    """Changes the extras of one client's answer in one exchange."""

    def __init__(self, plan, *, exchange, change):
        super().__init__(plan)
        self._exchange, self._change = exchange, change

    def exchange(self, requests):
        replies = super().exchange(requests)
        if len(self.exchanges) - 1 != self._exchange:
            return replies
        message = wire.decode(replies[1].blob)
        changed = wire.encode(replace(message, extras=self._change(message.extras)))
        return [replies[0], replace(replies[1], blob=changed), *replies[2:]]


def _without_mean(extras):
    kept = {n: t for n, t in extras["statistics"]["0"].items() if n != "1.running_mean"}
    return {**extras, "statistics": {**extras["statistics"], "0": kept}}


def _flat_mean(extras):
    wrong = {**extras["statistics"]["1"], "4.running_mean": torch.zeros(3)}
    return {**extras, "statistics": {**extras["statistics"], "1": wrong}}


@pytest.mark.parametrize(
    ("exchange", "change", "reason"),
    [
        (0, lambda e: {**e, "statistics": 3}, "the upload's 'statistics' is of type int; expected dict"),
        (0, lambda e: {**e, "statistics": {"0": e["statistics"]["0"]}}, "of the upload's candidates, '1' is missing"),
        (0, _without_mean, "of the upload's statistics of candidate 0, '1.running_mean' is missing"),
        (0, _flat_mean, "the upload's '4.running_mean' is torch.float32 (3,); expected torch.float32 (24,)"),
        (0, lambda e: {**e, "samples": 31}, "the upload speaks for 31 samples; expected 1 to the client's 30"),
        (0, lambda e: {**e, "samples": True}, "the upload's 'samples' is of type bool; expected int"),
        (1, lambda e: {**e, "samples": 0}, "the upload speaks for 0 samples; expected 1 to the client's 30"),
        (
            1,
            lambda e: {**e, "losses": torch.zeros(3, dtype=torch.float64)},
            "the upload's losses are torch.float64 (3,); expected torch.float64 (2,)",
        ),
    ],
)
def test_a_selection_goes_on_without_a_client_that_answers_nonsense(exchange, change, reason, tmp_path):
    plan = small_plan(small_method("fedtiny"), rounds=1, sizes=(20, 30, 25), per_round=3)
    outcome = go(plan, Lying(plan, exchange=exchange, change=change), folder=tmp_path)
    assert outcome.metrics[0]["clients"] == 3
    lines = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert [(line["client"], line["reason"]) for line in lines if line["status"] == "failed"] == [(1, reason)]


# ---- settings
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "fedtiny: candidates = 0; expected at least 1, or nothing"),
        ({"blocks": 0}, "fedtiny: blocks = 0; expected at least 1"),
        ({"dev_share": 0.0}, "fedtiny: dev_share = 0.0; expected a share in (0, 1]"),
        ({"pretrain_epochs": -1}, "fedtiny: pretrain_epochs = -1; expected at least 0"),
        (
            {"distribution": "global"},
            "fedtiny: distribution = 'global'; expected erk, er or uniform: pools vary layer densities",
        ),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError) as raised:
        FedTiny(**settings)
    assert str(raised.value) == message
