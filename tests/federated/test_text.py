"""Runs on text: a GPT-2 of some thousand weights on sentences of four words."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsparse.data import FederatedDataset
from fedsparse.data.tokens import blocks, tokenizer
from fedsparse.federated import sgd
from fedsparse.federated.plan import ClientSettings, Plan
from fedsparse.methods.base import Method
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.fedtiny import FedTiny
from fedsparse.methods.static import Static
from fedsparse.models import gpt2
from fedsparse.nn import sparse_layers
from tests.federated.small_run import exact, go, same_bits

CONTEXT = 12
METHODS = {
    "dense": FedAvg(),
    "static": Static(density=0.5),
    "static with a sparse table": Static(density=0.3, exclude="none", score="random"),
    "fedtiny": FedTiny(density=0.5, candidates=3, adjust_every=1, adjust_until=4, blocks=2, dev_share=0.5),
    "fedtiny with a sparse table": FedTiny(density=0.3, exclude="none", candidates=1, adjust_every=1, adjust_until=4),
}


class SmallGPT2:
    """Makes the same network at every call."""

    def __call__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            return gpt2(vocabulary=256, hidden=16, layers=2, heads=2, context=CONTEXT, dropout=0.1)


def sentences(count, generator):
    words = [["the ", "a "], ["cat ", "dog ", "bird "], ["sees ", "likes "], ["me", "fish"]]
    picks = torch.randint(12, (count, 4), generator=generator).tolist()
    texts = ["".join(w[i % len(w)] for w, i in zip(words, pick, strict=True)) for pick in picks]
    encode, vocabulary = tokenizer("bytes")
    return blocks(texts, encode, vocabulary, context=CONTEXT, truncate=False)


def plan(method: Method, *, rounds: int = 3) -> Plan:
    generator = torch.Generator().manual_seed(2)
    train, test = sentences(40, generator), sentences(8, generator)
    return Plan(
        method=method,
        data=FederatedDataset(train, test, torch.arange(len(train)).tensor_split(4), "sentences"),
        build_model=SmallGPT2(),
        rounds=rounds,
        per_round=3,
        client=ClientSettings(epochs=1, batch_size=8, optimizer="adamw", lr=5e-3),
    )


def test_metrics_are_those_of_every_token():
    """Story by story, token by token."""
    asked = plan(FedAvg())
    model, data = asked.network().eval(), asked.data.test
    losses, right = {}, []
    with torch.no_grad():
        for number in range(len(data)):
            x, y = data.batch(torch.tensor([number]))
            shares = model(x)[0].double().log_softmax(-1)
            for place in range(CONTEXT):
                if y[0, place] >= 0:
                    losses.setdefault(int(data.story[number]), []).append(-float(shares[place, y[0, place]]))
                    right.append(bool(shares[place].argmax() == y[0, place]))
    every = torch.tensor([loss for story in losses.values() for loss in story])
    metrics = sgd.evaluate(model, data)
    assert list(metrics) == ["accuracy", "loss", "perplexity_token", "perplexity_story"]
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert metrics["loss"] == pytest.approx(float(every.mean()), rel=1e-5)
    assert metrics["perplexity_token"] == pytest.approx(float(every.mean().exp()), rel=1e-5)
    of_stories = [float(torch.tensor(story).mean().exp()) for story in losses.values()]
    assert len(of_stories) == 8 < len(data)
    assert metrics["perplexity_story"] == pytest.approx(sum(of_stories) / 8, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_runs_learn(name):
    outcome = go(plan(METHODS[name]))
    first, last = outcome.metrics[0], outcome.metrics[-1]
    keys = list(first)
    assert keys[2:6] == ["accuracy", "loss", "perplexity_token", "perplexity_story"]
    assert last["perplexity_token"] < first["perplexity_token"] < 256
    assert last["clients_failed"] == 0
    assert ("lm_head.weight" in sparse_layers(outcome.model)) == name.endswith("table")
    if name != "dense":
        assert last["density"] <= METHODS[name].density
        assert last["bytes_up"] < last["bytes_up_dense"]
    if "fedtiny" in name:
        assert all(record["masks_changed"] for record in outcome.metrics[1:])


@pytest.mark.parametrize("name", ["static", "fedtiny", "fedtiny with a sparse table"])
def test_a_stopped_run_goes_on_to_the_bit(name, tmp_path: Path):
    asked = plan(METHODS[name])
    whole = go(asked)
    assert go(asked, folder=tmp_path, stop_after=1).stopped
    resumed = go(asked, folder=tmp_path, resume=True)
    assert exact(resumed.metrics) == exact(whole.metrics)
    assert same_bits(resumed, whole)


def test_rounds_without_evaluation_have_empty_columns():
    metrics = go(replace(plan(FedAvg(), rounds=2), eval_every=2)).metrics
    assert [record["perplexity_story"] is None for record in metrics] == [True, False]
    assert list(metrics[0]) == list(metrics[1])
