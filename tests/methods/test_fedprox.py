"""FedProx's penalty against numbers worked out by hand, and against steps taken in float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsparse.errors import ConfigError
from fedsparse.federated import seeds
from fedsparse.federated.client import HostedClient
from fedsparse.methods.fedavg import FedAvg
from fedsparse.methods.fedprox import FedProx
from fedsparse.nn import read_weights
from fedsparse.wire import Payload
from tests.federated.small_run import CLIENT, go, norm_free, same_bits, small_data, small_plan


def test_the_term_is_half_mu_times_the_squared_distance():
    model = torch.nn.Linear(2, 1)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    model.bias.data.zero_()
    term = FedProx(mu=0.5).proximal_term(model)
    assert term(model).item() == 0
    model.weight.data = torch.tensor([[3.0, 5.0]])
    model.bias.data.fill_(-1.0)
    value = term(model)
    assert value.item() == 0.25 * (4 + 9 + 1)
    value.backward()
    assert model.weight.grad.tolist() == [[1.0, 1.5]]
    assert model.bias.grad.tolist() == [-0.5]


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    term = FedProx(mu=2.0).proximal_term(model)
    model.bias.data += 3
    model.weight.data += 1
    assert term(model).item() == pytest.approx(2.0)


def local_weights(method):
    plan = small_plan(method, build_model=norm_free)
    client = HostedClient(plan, Payload("train", 0), client_id=0, model=norm_free(), memory={})
    assert method.train(client) == {}
    return read_weights(client.model).dense


def test_local_steps_are_those_of_the_penalised_loss():
    mu, data = 0.7, small_data().client(0)
    weights = {name: p.detach().double() for name, p in norm_free().named_parameters()}
    downloaded, velocity = dict(weights), {name: torch.zeros_like(w) for name, w in weights.items()}
    generator = seeds.generator(7, 0, 0, "batches")
    for _ in range(CLIENT.epochs):
        for part in torch.randperm(len(data), generator=generator).split(CLIENT.batch_size):
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            x, y = data.batch(part)
            hidden = (x.flatten(1).double() @ leaves["1.weight"].T + leaves["1.bias"]).relu()
            cross_entropy(hidden @ leaves["3.weight"].T + leaves["3.bias"], y).backward()
            for name, leaf in leaves.items():
                gradient = leaf.grad + mu * (weights[name] - downloaded[name])
                velocity[name] = CLIENT.momentum * velocity[name] + gradient
                weights[name] = weights[name] - CLIENT.lr * velocity[name]
    got = local_weights(FedProx(mu=mu))
    assert all(torch.allclose(got[name].double(), weights[name], rtol=0, atol=1e-5) for name in weights)


def test_a_larger_mu_keeps_clients_closer_to_the_global_model():
    start = {name: p.detach() for name, p in norm_free().named_parameters()}
    distances = []
    for mu in (0.0, 1.0, 10.0):
        got = local_weights(FedProx(mu=mu))
        distances.append(sum(float((got[name] - w).square().sum()) for name, w in start.items()))
    assert distances[0] > 1.2 * distances[1] > 1.2 * 1.2 * distances[2]


def test_without_the_term_it_is_federated_averaging_to_the_bit():
    plan = small_plan(FedAvg(), rounds=3)
    assert same_bits(go(replace(plan, method=FedProx(mu=0.0))), go(plan))
    assert not same_bits(go(replace(plan, method=FedProx(mu=0.1))), go(plan))


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_mu_out_of_range(mu):
    with pytest.raises(ConfigError) as raised:
        FedProx(mu=mu)
    assert str(raised.value) == f"fedprox: mu = {mu!r}; expected a number of at least 0"
