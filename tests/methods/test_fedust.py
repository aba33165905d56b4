"""FedUST's forgotten samples and what they decide, against dense networks in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.methods.fedust import FedUST, predictions
from fedsparse.nn import read_weights
from fedsparse.pattern import Topology, Weights
from tests.federated.small_run import SmallNet, small_data, small_method
from tests.methods.local import ROUND, dense, first, hosted, kept, positions, probe_gradients, start


# ---- forgotten samples
def remembering(outputs, labels):
    """A client whose model answers sample i with label outputs[i]."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data.copy_(torch.eye(4))
    return SimpleNamespace(model=model, data=Dataset(torch.eye(4)[outputs], torch.tensor(labels), 4))


@pytest.mark.parametrize(("only_correct", "wanted"), [(True, [0, 4]), (False, [0, 2, 4])])
def test_samples_are_forgotten_when_their_prediction_changes(only_correct, wanted):
    # Before: right, right, wrong, wrong, right. Then the prediction of samples 0, 2 and 4 changes.
    labels, known = [0, 1, 2, 3, 0], torch.tensor([0, 1, 3, 0, 0])
    client = remembering([1, 1, 2, 0, 3], labels)
    assert predictions(client).tolist() == [1, 1, 2, 0, 3]
    assert FedUST(only_correct=only_correct).forgotten(client, known).tolist() == wanted


@pytest.mark.parametrize("known", [[0, 1, 2], [3, 1, 2]])
def test_fewer_than_two_forgotten_samples_are_none(known):
    assert FedUST(only_correct=False).forgotten(remembering([0, 1, 2], [0, 1, 2]), torch.tensor(known)) is None


def test_predictions_are_those_of_evaluation_mode_and_change_nothing():
    client = hosted(small_method("fedust"), start())
    client.sgd(epochs=1)
    weights = read_weights(client.model)
    found = predictions(client)
    with torch.no_grad():
        wanted = dense(weights).eval()(small_data().client(0).x.double()).argmax(1)
    assert found.tolist() == wanted.tolist()
    after = dict(read_weights(client.model).items())
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


# ---- the swap
def by_hand(method, weights):
    """Masks after the swap, forgotten samples and weights before it: dense, with gradients after the drop."""
    before = hosted(method, weights)
    before.sgd(epochs=2)
    middle = read_weights(before.model)
    counts, data = method.swap_counts(weights.topology, ROUND), small_data().client(0)
    dropped = {n: first(-middle.weight(n).flatten().abs(), counts[n], kept(middle, n)) for n in weights.topology}
    masks = {n: kept(middle, n) for n in weights.topology}
    for name, gone in dropped.items():
        masks[name][list(gone)] = False
    shapes = {n: p.shape for n, p in weights.topology.items()}
    thinned = middle.moved_to(Topology.from_masks({n: mask.view(shapes[n]) for n, mask in masks.items()}))
    with torch.no_grad():
        known, now = (dense(w).eval()(data.x.double()).argmax(1) for w in (middle, thinned))
    forgotten = ((known != now) & (known == data.y)).nonzero().squeeze(1)
    gradients = probe_gradients(thinned, forgotten if len(forgotten) >= 2 else None)
    grown = {n: first(gradients[n].abs(), counts[n], ~kept(middle, n)) for n in weights.topology}
    return middle, forgotten, {n: positions(thinned, n) | grown[n] for n in grown}


def test_masks_move_by_the_gradients_of_forgotten_samples_after_the_drop():
    method, weights = small_method("fedust", epochs_before=2, swap_fraction=0.9), start()
    client = hosted(method, weights)
    assert method.train(client) == {}
    got = read_weights(client.model)
    middle, forgotten, masks = by_hand(method, weights)
    assert 2 <= len(forgotten) < len(client.data)
    assert {name: positions(got, name) for name in masks} == masks
    assert got.topology.counts == weights.topology.counts
    for name in masks:
        stayed = (kept(got, name) & kept(middle, name)).view(got.topology[name].shape)
        assert torch.equal(got.weight(name), middle.weight(name) * stayed)


@pytest.mark.parametrize("only_forgotten", [True, False])
def test_the_epochs_after_the_swap_see_the_forgotten_samples_alone(only_forgotten):
    method = small_method("fedust", epochs_before=2, swap_fraction=0.9, only_forgotten=only_forgotten)
    weights, seen = start(), []
    client = hosted(method, weights, epochs=3)
    plain = client.sgd
    client.sgd = lambda *, epochs, samples=None: seen.append((epochs, samples)) or plain(epochs=epochs, samples=samples)
    method.train(client)
    _, forgotten, _ = by_hand(method, weights)
    assert [epochs for epochs, _ in seen] == [2, 1]
    assert seen[0][1] is None
    assert (None if seen[1][1] is None else seen[1][1].tolist()) == (forgotten.tolist() if only_forgotten else None)


def test_with_nothing_forgotten_all_samples_serve():
    class Unforgetting(FedUST):
        def forgotten(self, client, known):
            assert len(known) == len(client.data)

    arguments = {"density": 0.2, "adjust_every": 2, "adjust_until": 7, "swap_fraction": 0.2, "epochs_before": 2}
    method, weights = Unforgetting(**arguments), start()
    client = hosted(method, weights)
    method.train(client)
    got = read_weights(client.model)
    before = hosted(method, weights)
    before.sgd(epochs=2)
    middle = read_weights(before.model)
    counts = method.swap_counts(weights.topology, ROUND)
    masks = {n: kept(middle, n) for n in weights.topology}
    for name, mask in masks.items():
        mask[list(first(-middle.weight(name).flatten().abs(), counts[name], mask))] = False
    shaped = {n: mask.view(weights.topology[n].shape) for n, mask in masks.items()}
    gradients = probe_gradients(middle.moved_to(Topology.from_masks(shaped)))
    for name, mask in masks.items():
        grown = first(gradients[name].abs(), counts[name], ~kept(middle, name))
        assert positions(got, name) == set(mask.nonzero().squeeze(1).tolist()) | grown


def test_a_layer_of_one_weight_keeps_it():
    weights = start()
    single = torch.zeros(8, 1, 3, 3, dtype=torch.bool)
    single[2, 0, 1, 1] = True
    lonely = weights.moved_to(Topology.from_masks({**weights.topology.masks(), "0.weight": single}))
    assert isinstance(lonely, Weights)
    method = small_method("fedust", swap_fraction=1.0)
    client = hosted(method, lonely)
    method.train(client)
    assert read_weights(client.model).topology["0.weight"] == lonely.topology["0.weight"]
    assert SmallNet()[0].weight.shape == single.shape


def test_other_rounds_train_as_usual():
    weights, method = start(), small_method("fedust")
    client, plain = (hosted(method, weights, round=3) for _ in range(2))
    method.train(client)
    plain.sgd()
    got, wanted = (dict(read_weights(c.model).items()) for c in (client, plain))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
