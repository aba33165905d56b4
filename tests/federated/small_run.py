"""A federated run that takes well under a second: 10 classes, 8x8 pictures, three convolutions with batch norm."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fedsparse.data import Dataset, FederatedDataset
from fedsparse.federated.engines.base import Engine, Reply, Request
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.loop import Outcome, run_rounds
from fedsparse.federated.plan import ClientSettings, Plan
from fedsparse.federated.server import AT_ONCE
from fedsparse.federated.store import Kept
from fedsparse.methods.base import Method, SparseMethod, find
from fedsparse.methods.roles import Client, Extras, Server, Update, client_task
from fedsparse.nn import read_weights, sparse_layers, topology
from fedsparse.pattern import Topology, Weights

CLASSES = 10
SIZES = (40, 25, 33, 48, 30, 44)  # of the clients; with batches of 16 the last ones are of 1, 8, 9, 12 and 14
CLIENT = ClientSettings(epochs=2, batch_size=16, lr=0.05, momentum=0.9)

# Every method takes those of these settings that it has.
SETTINGS = {
    "density": 0.2,
    "adjust_every": 2,
    "adjust_until": 7,
    "swap_fraction": 0.4,
    "candidates": 2,
    "blocks": 2,
    "dev_share": 0.2,
    "initial_epochs": 2,
    "initial_adjustments": 6,
}

# What differs between runs of the same numbers.
MEASURED = {"client_seconds", "server_seconds", "seconds", "peak_bytes"}


class SmallNet(nn.Sequential):
    """8x8 pictures -> 10 logits; 9,170 trainable parameters, 8,712 of them prunable.

    With a `share` of its channels, rounded, it is narrower.
    """

    def __init__(self, seed: int = 0, *, share: float = 1.0) -> None:
        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

        a, b, c = (max(1, round(share * channels)) for channels in (8, 24, 32))
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES)]
        super().__init__(*block(1, a, 1), *block(a, b, 2), *block(b, c, 2)[:2], nn.ReLU(), *pool)
        if self[0].weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(6 / parameter[0].numel())
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.zeros_(self[-1].bias)


@dataclass(frozen=True, kw_only=True)
class Remembering(SparseMethod):
    """Weights and masks that depend on what server and clients kept from the rounds before."""

    name: ClassVar[str] = "remembering"
    density: float = 0.2

    def start(self, server: Server) -> Weights:
        return server.weights.moved_to(self.initial_topology(server.model, "random", server.rng("mask")))

    @client_task
    def train(self, client: Client) -> Extras:
        last = client.memory.get("weights")
        client.sgd()
        if isinstance(last, Weights) and last.topology == topology(client.model):
            for name, layer in sparse_layers(client.model).items():
                layer.values.data.lerp_(last.values[name], 0.25)
        client.memory["weights"] = read_weights(client.model)
        return {}

    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        new = super().aggregate(server, updates)
        last = server.memory.get("bias")
        bias = new.dense["11.bias"]
        server.memory["bias"] = bias if last is None else 0.5 * bias + 0.5 * cast(Tensor, last)
        server.memory["rounds"] = cast(int, server.memory.get("rounds", 0)) + 1
        return new.with_dense({"11.bias": cast(Tensor, server.memory["bias"])})

    def adjust(self, server: Server, _: Sequence[Update]) -> Topology | None:
        if cast(int, server.memory["rounds"]) % 3:
            return None
        return self.initial_topology(SmallNet(), "random", server.rng("mask"))


def narrow_net(share: float) -> nn.Module:
    """A small net with that share of its channels."""
    return SmallNet(share=share)


def norm_free() -> nn.Sequential:
    """The smallest network with a prunable layer: 64 -> 12 -> 10."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, CLASSES))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.2, 0.2, generator=generator)
    return model


@cache
def small_data(sizes: tuple[int, ...] = SIZES, *, seed: int = 0) -> FederatedDataset:
    """One noisy prototype a class, dealt to clients of the given sizes."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randn(CLASSES, 1, 8, 8, generator=generator)

    def samples(count: int) -> Dataset:
        y = torch.randint(CLASSES, (count,), generator=generator)
        return Dataset(prototypes[y] + 0.7 * torch.randn(count, 1, 8, 8, generator=generator), y, CLASSES)

    test, train = samples(200), samples(sum(sizes))
    return FederatedDataset(train, test, torch.arange(sum(sizes)).split(sizes), "prototypes")


def small_method(name: str, **changed: object) -> Method:
    """A method at the settings above: `remembering`, or one that is registered."""
    kind = Remembering if name == Remembering.name else find(name)
    known = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in {**SETTINGS, **changed}.items() if key in known})


def small_plan(
    method: Method,
    *,
    rounds: int = 3,
    sizes: tuple[int, ...] = SIZES,
    per_round: int = 4,
    seed: int = 7,
    client: ClientSettings = CLIENT,
    build_model: Callable[[], nn.Module] = SmallNet,
    min_clients: int = 1,
    checkpoint_every: int = 1,
    public: Dataset | None = None,
) -> Plan:
    return Plan(
        method=method,
        data=small_data(sizes),
        build_model=build_model,
        seed=seed,
        rounds=rounds,
        per_round=per_round,
        client=client,
        min_clients=min_clients,
        checkpoint_every=checkpoint_every,
        public=public,
        narrowed=narrow_net,
    )


class SpyEngine(InlineEngine):
    """Keeps every request and reply; optionally serves clients in reverse order.

    Attributes:
        exchanges: (request, reply) pairs of each exchange, in the order of the requests.
    """

    def __init__(self, plan: Plan, *, reverse: bool = False) -> None:
        super().__init__(plan)
        self.exchanges: list[list[tuple[Request, Reply]]] = []
        self._step = -1 if reverse else 1

    def kept(self, client_id: int) -> Kept:
        """What a client keeps now."""
        return self._store.kept(client_id)

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        replies = super().exchange(requests[:: self._step])[:: self._step]
        self.exchanges.append(list(zip(requests, replies, strict=True)))
        return replies


def go(
    plan: Plan,
    engine: Engine | None = None,
    *,
    folder: Path | None = None,
    stop_after: int | None = None,
    resume: bool = False,
    on_round: Callable[[Mapping[str, object]], None] = lambda _: None,
    at_once: int = AT_ONCE,
) -> Outcome:
    """Runs a plan; with `stop_after`, asks for a stop once that many rounds were finished by this call."""
    finished: list[object] = []

    def finish(record: Mapping[str, object]) -> None:
        finished.append(record)
        on_round(record)

    return run_rounds(
        plan,
        engine or InlineEngine(plan),
        folder=folder,
        on_round=finish,
        should_stop=lambda: stop_after is not None and len(finished) >= stop_after,
        resume=resume,
        at_once=at_once,
    )


def exact(records: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Records without what a clock or the allocator said."""
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def bits(outcome: Outcome) -> dict[str, Tensor]:
    """All final weights in dense shape, masks included."""
    weights = outcome.weights
    masks = {f"mask of {name}": mask for name, mask in weights.topology.masks().items()}
    values = {name: weights.weight(name) for name in weights.topology}
    return {**dict(weights.dense), **values, **masks}


def same_bits(one: Outcome, other: Outcome) -> bool:
    """Whether two runs ended with the same weights and masks, to the last bit."""
    mine, theirs = bits(one), bits(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
