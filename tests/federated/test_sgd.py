"""The loop over mini-batches against steps taken by hand."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsparse.data import Dataset
from fedsparse.federated import sgd
from fedsparse.federated.failure import ClientFailure
from fedsparse.federated.plan import ClientSettings


def samples(count, *, generator, features=5, classes=3):
    x = torch.randn(count, features, generator=generator)
    return Dataset(x, torch.randint(classes, (count,), generator=generator), classes)


def linear(generator, features=5, classes=3):
    model = nn.Linear(features, classes)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model


def normed(generator):
    model = nn.Sequential(linear(generator), nn.BatchNorm1d(3))
    return model


def stepped(model, data, settings, *, parts):
    """Parameters after momentum SGD by hand, in float64, over the given batches."""
    weights = {n: p.detach().double() for n, p in model.named_parameters()}
    velocity = {n: torch.zeros_like(w) for n, w in weights.items()}
    for positions in parts:
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        x, y = data.batch(positions)
        cross_entropy(x.double() @ leaves["weight"].T + leaves["bias"], y).backward()
        for name, leaf in leaves.items():
            gradient = leaf.grad + settings.weight_decay * weights[name]
            velocity[name] = settings.momentum * velocity[name] + gradient
            weights[name] = weights[name] - settings.lr * velocity[name]
    return weights


def test_steps_are_those_of_momentum_sgd(generator):
    data, model = samples(10, generator=generator), linear(generator)
    settings = ClientSettings(batch_size=4, lr=0.3, momentum=0.9, weight_decay=0.01)
    orders = torch.Generator().manual_seed(4)
    parts = [p for _ in range(2) for p in torch.randperm(10, generator=orders).split(4)]
    wanted = stepped(model, data, settings, parts=parts)
    sgd.train(model, data, settings, epochs=2, generator=torch.Generator().manual_seed(4))
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.detach().double(), wanted[name], rtol=0, atol=1e-6)


def test_every_call_starts_with_a_fresh_optimiser(generator):
    data, model = samples(4, generator=generator), linear(generator)
    settings = ClientSettings(batch_size=4, lr=0.3, momentum=0.9)
    whole = torch.arange(4)
    after_one = stepped(model, data, settings, parts=[whole])
    twice = linear(generator)
    for name, parameter in twice.named_parameters():
        parameter.data.copy_(after_one[name])
    wanted = stepped(twice, data, settings, parts=[whole])
    carried = stepped(model, data, settings, parts=[whole, whole])
    for _ in range(2):
        sgd.train(model, data, settings, epochs=1, generator=torch.Generator())
    assert torch.allclose(model.weight.detach().double(), wanted["weight"], rtol=0, atol=1e-6)
    assert not torch.allclose(model.weight.detach().double(), carried["weight"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimisers_by_name(name, kind, generator):
    model = linear(generator)
    model.bias.requires_grad_(False)
    made = sgd.optimizer(model, ClientSettings(optimizer=name, lr=0.2, weight_decay=0.1, momentum=0.7))
    assert type(made).__name__ == kind
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.1)
    assert group.get("momentum", 0.7) == 0.7
    assert group["params"] == [model.weight]


def test_batches_cover_an_epoch_once():
    parts = list(sgd.batches(10, 4, torch.Generator().manual_seed(1)))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    other = torch.cat(list(sgd.batches(10, 4, torch.Generator().manual_seed(2))))
    assert other.tolist() != torch.cat(parts).tolist()
    assert [part.tolist() for part in sgd.batches(2, 4, torch.Generator().manual_seed(1))] in ([[0, 1]], [[1, 0]])


def sizes_seen(model, data, settings, *, epochs=1):
    seen = []
    hook = model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    sgd.train(model, data, settings, epochs=epochs, generator=torch.Generator())
    hook.remove()
    return seen


def test_a_last_batch_of_one_is_skipped_by_batch_norm_only(generator):
    data, settings = samples(9, generator=generator), ClientSettings(batch_size=4)
    assert sizes_seen(linear(generator), data, settings, epochs=2) == [4, 4, 1, 4, 4, 1]
    model = normed(generator)
    assert sizes_seen(model, data, settings, epochs=2) == [4, 4, 4, 4]
    assert model[1].num_batches_tracked.item() == 4


def test_a_single_sample(generator):
    data, settings = samples(1, generator=generator), ClientSettings(batch_size=4)
    assert sizes_seen(linear(generator), data, settings) == [1]
    with pytest.raises(ClientFailure) as raised:
        sgd.train(normed(generator), data, settings, epochs=1, generator=torch.Generator())
    assert str(raised.value) == (
        "there is nothing to train on: 1 samples in batches of 4, of which batch norm needs two or more"
    )


def test_no_sample_is_a_failure_and_no_epoch_is_not(generator):
    nobody = samples(0, generator=generator)
    with pytest.raises(ClientFailure) as raised:
        sgd.train(linear(generator), nobody, ClientSettings(), epochs=1, generator=torch.Generator())
    assert str(raised.value) == "there is nothing to train on: 0 samples in batches of 32"
    model = linear(generator)
    before = model.weight.detach().clone()
    sgd.train(model, nobody, ClientSettings(), epochs=0, generator=torch.Generator())
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(("poison", "word"), [(math.nan, "nan"), (math.inf, "nan"), (1e38, "inf")])
def test_a_loss_that_is_not_finite_ends_the_client(poison, word, generator):
    x = torch.ones(4, 5)
    x[2, 0] = poison
    model = linear(generator)
    model.weight.data.copy_(torch.tensor([[3.0], [-3.0], [0.0]]).expand(3, 5))
    with pytest.raises(ClientFailure) as raised:
        sgd.train(
            model,
            Dataset(x, torch.tensor([0, 0, 1, 0]), 3),
            ClientSettings(batch_size=4),
            epochs=1,
            generator=torch.Generator(),
        )
    assert str(raised.value) == f"the training loss became {word}; a smaller learning rate may help"


def test_training_mode_is_set(generator):
    model = normed(generator).eval()
    sgd.train(model, samples(4, generator=generator), ClientSettings(), epochs=1, generator=torch.Generator())
    assert model[1].num_batches_tracked.item() == 1


def test_evaluation_is_over_all_samples_and_changes_nothing(generator):
    data = samples(600, generator=generator)  # more than two batches of 256
    model = normed(generator)
    model.train()
    metrics = sgd.evaluate(model, data)
    assert list(metrics) == ["accuracy", "loss"]
    accuracy, loss = metrics.values()
    model.eval()
    with torch.no_grad():
        logits = model(data.x).double()
    assert accuracy == pytest.approx(float((logits.argmax(1) == data.y).double().mean()))
    assert loss == pytest.approx(float(cross_entropy(logits, data.y)), rel=1e-6)
    assert model[1].num_batches_tracked.item() == 0
    assert sgd.evaluate(model, samples(0, generator=generator)) == {"accuracy": 0.0, "loss": 0.0}


# ---- what methods shape
def test_a_penalty_joins_the_loss_of_every_step(generator):
    # Without samples' gradients the penalty alone moves the weights: d/dw (3 w^2) = 6 w, so w <- w (1 - 6 lr).
    model = linear(generator)
    start = model.bias.detach().clone()
    data = Dataset(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), 3)
    plain = linear(torch.Generator().manual_seed(0))
    plain.load_state_dict(model.state_dict())
    settings = ClientSettings(batch_size=4, lr=0.1, momentum=0.0)
    arguments = {"epochs": 1, "generator": torch.Generator()}
    sgd.train(plain, data, settings, **arguments)
    sgd.train(model, data, settings, **arguments, penalty=lambda m: 3 * m.bias.square().sum())
    assert torch.allclose(model.bias, plain.bias - 0.6 * start, atol=1e-6)
    assert torch.equal(model.weight, plain.weight)


def test_the_rate_of_a_step_follows_the_rule_and_is_restored(generator):
    data, model = samples(9, generator=generator), normed(generator)
    settings = ClientSettings(batch_size=4, lr=0.5, momentum=0.0)
    steps, asked, rates = sgd.optimizer(model, settings), [], []

    def rule(step, total, rate):
        asked.append((step, total, rate))
        return 0.1 * (step + 1)

    @contextmanager
    def around():
        yield
        rates.append(steps.param_groups[0]["lr"])

    sgd.train(
        model,
        data,
        settings,
        epochs=2,
        generator=torch.Generator(),
        steps=steps,
        learning_rate=rule,
        around_step=around,
    )
    # 9 samples in batches of 4: the last one is alone, which batch norm skips
    assert asked == [(step, 4, 0.5) for step in range(4)]
    assert rates == [0.1 * (step + 1) for step in range(4)]
    assert steps.param_groups[0]["lr"] == 0.5


def test_around_each_step_gradients_are_there_and_the_step_is_not_taken(generator):
    data, model = samples(8, generator=generator), linear(generator)
    settings, seen = ClientSettings(batch_size=4, lr=0.5, momentum=0.0), []

    @contextmanager
    def around():
        before = model.weight.detach().clone()
        assert model.weight.grad is None
        yield
        seen.append((before, model.weight.detach().clone(), model.weight.grad.clone()))

    sgd.train(model, data, settings, epochs=1, generator=torch.Generator(), around_step=around)
    assert len(seen) == 2
    for before, after, _ in seen:
        assert torch.equal(before, after)
    assert torch.allclose(seen[1][0], seen[0][0] - 0.5 * seen[0][2])
    assert torch.allclose(model.weight, seen[1][0] - 0.5 * seen[1][2])
