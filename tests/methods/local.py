"""One client of a method by itself, and what a dense network in float64 says about it."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fedsparse as fs
from fedsparse.federated import seeds, sgd
from fedsparse.federated.client import HostedClient
from fedsparse.methods.base import Method
from fedsparse.nn import read_weights, write_weights
from fedsparse.pattern import Weights
from fedsparse.wire import Payload
from tests.federated.small_run import CLIENT, SmallNet, small_data, small_plan

ROUND = 2  # adjusting, with the settings of small_run
SEED = 7


def start(density: float = 0.2) -> Weights:
    return read_weights(fs.sparsify(SmallNet(), density))


def hosted(method: Method, weights: Weights, *, epochs: int = 2, round: int = ROUND, extras=None) -> HostedClient:
    """Client 0 with `weights` in its model, before anything has run."""
    model = SmallNet()
    write_weights(model, weights)
    plan = small_plan(method, client=replace(CLIENT, epochs=epochs), seed=SEED)
    return HostedClient(plan, Payload("train", round, weights, extras or {}), client_id=0, model=model, memory={})


def dense(weights: Weights) -> nn.Module:
    """The dense network of the same function, in float64."""
    model = SmallNet()
    write_weights(model, weights)
    return fs.densify(model).double()


def probe_gradients(weights: Weights, samples: Tensor | None = None) -> dict[str, Tensor]:
    """Float64 gradients `(size,)` at every position, kept or pruned, on the mini-batch that client 0 probes."""
    data = small_data().client(0)
    data = data if samples is None else data.subset(samples)
    x, y = data.batch(next(sgd.batches(len(data), CLIENT.batch_size, seeds.generator(SEED, ROUND, 0, "probe"))))
    model = dense(weights).train()
    cross_entropy(model(x.double()), y).backward()
    return {name: model.get_parameter(name).grad.flatten() for name in weights.topology}


def first(scores: Tensor, count: int, among: Tensor) -> set[int]:
    """Positions of the `count` largest scores among the True ones, ties to the lowest position."""
    order = scores.masked_fill(~among, -torch.inf).sort(descending=True, stable=True).indices
    return set(order[:count].tolist())


def kept(weights: Weights, name: str) -> Tensor:
    """Mask of one weight, flat."""
    return weights.topology[name].mask().flatten()


def positions(weights: Weights, name: str) -> set[int]:
    return set(weights.topology[name].flat.tolist())


def still(method: Method, weights: Weights, *, round: int = ROUND, extras=None, memory=None) -> HostedClient:
    """Client 0, whose training takes its steps without moving a weight: one epoch at a rate of 0."""
    model = SmallNet()
    write_weights(model, weights)
    plan = small_plan(method, client=replace(CLIENT, epochs=1, lr=0.0), seed=SEED)
    payload = Payload("train", round, weights, extras or {})
    return HostedClient(plan, payload, client_id=0, model=model, memory={} if memory is None else memory)


def step_gradients(weights: Weights, *, round: int = ROUND) -> list[dict[str, Tensor]]:
    """Float64 gradients of every parameter, dense-shaped, at each step of the training of `still`."""
    data, found = small_data().client(0), []
    for positions in sgd.batches(len(data), CLIENT.batch_size, seeds.generator(SEED, round, 0, "batches")):
        model = dense(weights).train()
        x, y = data.batch(positions)
        cross_entropy(model(x.double()), y).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    return found
