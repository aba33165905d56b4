"""The rounds of a run: sample, ask, aggregate, adjust, evaluate, write."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsparse import pruning
from fedsparse.federated import sgd
from fedsparse.federated.checkpoint import Checkpoints
from fedsparse.federated.costs import Sizes, Work, round_costs, sizes
from fedsparse.federated.engines.base import Engine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.plan import Plan
from fedsparse.federated.server import AT_ONCE, FederatedServer
from fedsparse.methods.base import Method
from fedsparse.methods.roles import Update
from fedsparse.nn import density, write_weights
from fedsparse.pattern import Topology, Weights

__all__ = ["Outcome", "run_rounds"]

_UPLOADS = ".uploads"  # of the run's folder: what the clients of the present round answered


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run ends with.

    Attributes:
        model: the network with the final weights, sparse where they are.
        weights: the final weights.
        metrics: one record a round.
        stopped: whether it was asked to stop before the last round.
    """

    model: nn.Module
    weights: Weights
    metrics: list[dict[str, Any]]
    stopped: bool


def run_rounds(
    plan: Plan,
    engine: Engine,
    *,
    folder: Path | None,
    on_round: Callable[[Mapping[str, object]], None],
    should_stop: Callable[[], bool],
    resume: bool = False,
    at_once: int = AT_ONCE,
) -> Outcome:
    """Runs a plan, or goes on with it.

    Args:
        plan: what to run.
        engine: who runs the clients.
        folder: where records and checkpoints go, and uploads while their round lasts; None writes no records, and
            uploads to a temporary folder.
        on_round: called with each record.
        should_stop: asked after each round; a stop writes a checkpoint first.
        resume: go on from the newest checkpoint in `folder`, from the beginning where there is none. Records are
            those of an uninterrupted run, times and memory apart.
        at_once: clients that the engine is asked for at a time; see `FederatedServer`.

    Raises:
        ClientError: fewer than `plan.min_clients` usable answers in an exchange; the last checkpoint stays.
        CheckpointError: a checkpoint or an upload cannot be written, or no checkpoint of those present can be read.
    """
    ledger = Ledger(folder)
    checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
    uploads = None if folder is None else folder / _UPLOADS
    server = FederatedServer(plan, engine, ledger, folder=uploads, at_once=at_once)
    state = checkpoints.newest() if checkpoints is not None and resume else None
    if state is None:
        if checkpoints is not None:
            checkpoints.clear()
        ledger.restore({})
    else:
        server.restore(state)
        if checkpoints is not None:
            engine.restore(checkpoints.clients(state.round))
    network = sizes(plan.network(), plan.data.test.batch(torch.tensor([0]))[0][0])
    next_round, stopped = 0 if state is None else state.round, False
    with closing(server):
        while next_round < plan.rounds and not stopped:
            record = _round(plan, server, ledger, network, next_round)
            ledger.add_round(record)
            on_round(record)
            next_round += 1
            stopped = next_round < plan.rounds and should_stop()
            due = stopped or next_round % plan.checkpoint_every == 0 or next_round == plan.rounds
            if checkpoints is not None and due:
                checkpoints.save(server.state(next_round), engine.save)
    model = plan.network()
    write_weights(model, server.weights)
    return Outcome(model, server.weights, ledger.rounds, stopped)


def _round(plan: Plan, server: FederatedServer, ledger: Ledger, network: Sizes, round: int) -> dict[str, Any]:
    """One round; what the method sends before round 0 is counted in round 0."""
    start = time.perf_counter()
    method = plan.method
    server.begin(round)
    if round == 0:
        server.weights = method.start(server)
    before = server.weights.topology
    updates = server.ask(
        method.train,
        lambda client: method.download(server, client),
        weights_back=method.weights_back,
        check=method.check,
    )
    server.weights = method.aggregate(server, updates)
    topology = method.adjust(server, updates)
    if topology is not None:
        server.weights = server.weights.moved_to(topology)
    seconds = time.perf_counter() - start - server.traffic.exchange_seconds
    ledger.add_layers(round, server.weights.topology, before)
    masks_changed = server.weights.topology.changed_positions(before)
    costs = round_costs(network, (_work(method, update, before, round) for update in updates), plan.client)
    server.end()
    return _record(plan, server, masks_changed=masks_changed, seconds=seconds, costs=costs)


def _work(method: Method, update: Update, sent: Topology, round: int) -> Work:
    """What one client did; those that upload no weights have trained under the masks they were sent."""
    topology = sent if update.weights is None else update.weights.topology
    return Work(topology, update.num_samples, method.costs(topology, round))


def _record(
    plan: Plan, server: FederatedServer, *, masks_changed: int, seconds: float, costs: Mapping[str, int]
) -> dict[str, Any]:
    round, traffic, model = server.round, server.traffic, server.model
    evaluated = (round + 1) % plan.eval_every == 0 or round + 1 == plan.rounds
    test = plan.data.test
    metrics = sgd.evaluate(model, test) if evaluated else dict.fromkeys(test.task.columns)
    diverged = any(value is not None and not math.isfinite(value) for value in metrics.values())
    kept = server.weights.topology.nnz
    if not server.weights.topology:
        kept = sum(weight.numel() for weight in pruning.prunable(model).values())
    return {
        "round": round,
        "kind": "adjust" if plan.method.adjusts(round) else "train",
        **{name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()},
        "density": density(model),
        "nnz": kept,
        "masks_changed": masks_changed,
        "bytes_down": traffic.bytes_down,
        "bytes_up": traffic.bytes_up,
        "bytes_down_dense": traffic.bytes_down_dense,
        "bytes_up_dense": traffic.bytes_up_dense,
        "client_seconds": traffic.client_seconds,
        "server_seconds": seconds,
        "peak_bytes": traffic.peak_bytes,
        "flops_modelled": costs["flops_exact_modelled"],
        "joules": traffic.joules,
        "clients": traffic.answered,
        "clients_failed": traffic.failed,
        "clients_retried": traffic.retried,
        "clients_folded": traffic.folded,
        "asks_failed": traffic.asks_failed,
        "replies_ignored": traffic.ignored,
        "diverged": diverged,
        **costs,
        **plan.method.metrics(server),
    }
