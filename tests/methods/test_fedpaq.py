"""FedPAQ: differences on a grid, their mean added to the global model."""

from dataclasses import replace

import pytest
import torch

from fedsparse import wire
from fedsparse.errors import ClientError, ConfigError
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.fedpaq import FedPAQ, quantised, restored
from fedsparse.methods.roles import Download, Update
from fedsparse.methods.static import Static
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.wire import Quantized
from tests.federated.small_run import SmallNet, SpyEngine, bits, go, small_plan
from tests.methods.test_conformance import train_exchanges

BUFFERS = {name for name, _ in SmallNet().named_buffers()}


class Holding:
    """The part of a server that `aggregate` looks at."""

    def __init__(self, weights):
        self.weights = weights


def codes(*numbers):
    return torch.tensor(numbers, dtype=torch.int8)


def test_the_mean_of_the_differences_is_added():
    old = Weights(
        Topology({"w": Pattern.from_flat((1, 3), torch.tensor([0, 2]))}),
        {"w": torch.tensor([10.0, -10.0])},
        {"b": torch.tensor([1.0]), "mean": torch.tensor([0.0]), "batches": torch.tensor(3)},
    )

    def answer(client, samples, w, b, mean, batches):
        differences = {"w": Quantized(codes(*w), 127.0), "b": Quantized(codes(b), 254.0)}
        exact = {"mean": torch.tensor([mean]), "batches": torch.tensor(batches)}
        return Update(client, samples, None, {"differences": differences, "exact": exact})

    updates = [answer(0, 1, (4, 0), 2, 8.0, 5), answer(1, 3, (-4, 8), 0, 0.0, 9)]
    new = FedPAQ(density=0.5).aggregate(Holding(old), updates)
    assert new.values["w"].tolist() == [10 + (4 - 3 * 4) / 4, -10 + 3 * 8 / 4]
    assert new.dense["b"].tolist() == [1 + 2 * 2 / 4]  # steps of 2
    assert (new.dense["mean"].tolist(), new.dense["batches"].item()) == ([2.0], 9)
    assert new.topology == old.topology


@pytest.fixture(scope="module")
def run():
    torch.set_num_threads(1)
    plan = small_plan(FedPAQ(), rounds=3)
    engine = SpyEngine(plan)
    return go(plan, engine), engine, train_exchanges(engine)


def test_uploads_are_a_byte_a_parameter(run):
    outcome, engine, exchanges = run
    for _, uploads in exchanges:
        for upload in uploads:
            assert upload.weights is None
            differences = upload.extras["differences"]
            assert set(differences) == {name for name, _ in SmallNet().named_parameters()}
            assert {found.codes.dtype for found in differences.values()} == {torch.int8}
            assert all(int(found.codes.abs().max()) == 127 for found in differences.values())
            assert set(upload.extras["exact"]) == BUFFERS
    size = len(engine.exchanges[0][0][1].blob)
    buffers = sum(b.numel() * b.element_size() for b in SmallNet().buffers())
    assert 0 < size - 9170 - buffers < 900  # names, scales and shapes
    for record in outcome.metrics:
        assert record["bytes_up"] < 0.4 * record["bytes_up_dense"]
        assert (record["clients"], record["clients_failed"]) == (4, 0)
        # Downloads are dense; a client's first one also says, in a byte, that there are no masks.
        assert 0 <= record["bytes_down"] - record["bytes_down_dense"] <= 4
        assert record["bytes_up_paper_modelled"] == 4 * (9170 + 4 * 2 * (8 + 24 + 32))


def test_the_server_restores_what_a_client_trained_up_to_a_step():
    """One client, one round: off by less than a grid step, per tensor."""
    plan = small_plan(FedPAQ(), rounds=1, sizes=(40,), per_round=1)
    wanted = bits(go(small_plan(FedAvg(), rounds=1, sizes=(40,), per_round=1)))
    got, initial = bits(go(plan)), plan.network().state_dict()
    rounded = 0
    for name, trained in wanted.items():
        if name in BUFFERS:
            assert torch.equal(got[name], trained)
            continue
        step = float((trained - initial[name]).abs().max()) / 127
        assert float((got[name] - trained).abs().max()) < step * 1.001
        rounded += int((got[name] != trained).sum())
    assert rounded > 5000


def test_sixteen_bits_are_finer_and_twice_as_long():
    runs = {n: go(small_plan(FedPAQ(bits=n), rounds=1)) for n in (8, 16)}
    wanted = bits(go(small_plan(FedAvg(), rounds=1)))
    off = {n: max(float((bits(r)[k] - t).abs().max()) for k, t in wanted.items()) for n, r in runs.items()}
    assert 0 < off[16] < off[8] / 50
    up = {n: r.metrics[0]["bytes_up"] for n, r in runs.items()}
    assert up[16] - up[8] == 4 * 9170


def test_a_sparse_model_sends_what_it_keeps():
    plan = small_plan(FedPAQ(density=0.2), rounds=2)
    engine = SpyEngine(plan)
    outcome = go(plan, engine)
    masks = go(small_plan(Static(density=0.2), rounds=1)).weights.topology
    assert outcome.weights.topology == masks
    for exchange in engine.exchanges:
        for _, reply in exchange:
            differences = wire.decode(reply.blob).extras["differences"]
            assert {name: found.codes.numel() for name, found in differences.items() if name in masks} == masks.counts
    assert outcome.metrics[-1]["bytes_up"] < 0.2 * outcome.metrics[-1]["bytes_up_dense"]


def test_rounding_follows_the_generator():
    before = Weights(Topology(), {}, {"w": torch.zeros(1000)})
    after = Weights(Topology(), {}, {"w": torch.linspace(-1, 1, 1000)})

    def rounded(seed):
        generator = torch.Generator().manual_seed(seed)
        return restored(before, quantised(before, after, {"w"}, dtype=torch.int8, generator=generator)).dense["w"]

    assert torch.equal(rounded(0), rounded(0))
    assert not torch.equal(rounded(0), rounded(1))


SENT = Weights(Topology(), {}, {"w": torch.zeros(3), "mean": torch.zeros(2)})
GOOD = {"differences": {"w": Quantized(codes(1, 2, 3), 1.0)}, "exact": {"mean": torch.ones(2)}}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"differences": 3}, "the upload's 'differences' is of type int; expected dict"),
        ({"exact": {}}, "of the upload's tensors, 'mean' is missing"),
        ({"exact": {"mean": torch.ones(2), "x": torch.ones(2)}}, "of the upload's tensors, 'x' was not asked for"),
        ({"exact": {"mean": torch.ones(3)}}, r"the upload's 'mean' is torch.float32 \(3,\); expected .*\(2,\)"),
        ({"exact": {"mean": torch.ones(2).double()}}, r"is torch.float64 \(2,\); expected torch.float32 \(2,\)"),
        ({"differences": {"w": torch.ones(3)}}, "the upload's 'w' is of type Tensor; expected Quantized"),
        ({"differences": {"w": Quantized(codes(1), 1.0)}}, r"'w' is torch.int8 \(1,\); expected torch.int8 \(3,\)"),
        ({"differences": {"w": Quantized(codes(1, 2, 3).short(), 1.0)}}, r"'w' is torch.int16 \(3,\); expected"),
    ],
)
def test_answers_that_do_not_fit_are_refused(changed, reason):
    method, update = FedPAQ(), Update(0, 5, None, GOOD)
    method.check(Download(SENT), update)
    with pytest.raises(ClientError, match=reason):
        method.check(Download(SENT), replace(update, extras={**GOOD, **changed}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4}, "fedpaq: bits = 4; expected 8 or 16"),
        ({"score": "snip"}, "fedpaq: score = 'snip'; expected one of magnitude, random"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        FedPAQ(**settings)
