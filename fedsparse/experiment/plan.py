"""From a configuration to what the rounds need: data dealt to clients, a seeded model, numbers."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsparse import models
from fedsparse.data import Cutting, Dataset, FederatedDataset, load, partition
from fedsparse.errors import ConfigError, DataError, PatternError
from fedsparse.experiment.config import Config
from fedsparse.experiment.engine import client_threads, require_engine
from fedsparse.experiment.settings import DataTable
from fedsparse.federated.plan import ClientSettings, Plan
from fedsparse.methods.base import SparseMethod

__all__ = ["SeededModel", "build_plans", "data_root", "deal"]

ROOT_VARIABLE = "FEDSPARSE_DATA"


@dataclass(frozen=True)
class SeededModel:
    """Makes the same dense model at every call and in every process, leaving the global generator as it was.

    Attributes:
        name, options: the model and its options.
        in_shape: shape of one sample, `(channels, height, width)`, `(features,)` or `(length,)` of tokens.
        num_classes: classes of the data set, or the size of its vocabulary.
        seed: initial weights follow from it.
        tokens: whether samples are tokens.
    """

    name: str
    in_shape: tuple[int, ...]
    num_classes: int
    seed: int
    options: Mapping[str, object] = field(default_factory=dict)
    tokens: bool = False

    def __call__(self) -> nn.Module:
        """A new model on the CPU with the initial weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return models.build(
                self.name,
                in_shape=self.in_shape,
                num_classes=self.num_classes,
                options=self.options,
                tokens=self.tokens,
            )

    def narrowed(self, share: float) -> nn.Module:
        """The same with `share` of its channels."""
        return replace(self, options=models.narrowed(self.name, self.options, share))()


def build_plans(configs: Iterable[Config]) -> list[Plan]:
    """The plan of each run; runs with the same data and seed share them in memory.

    Reads the data and makes each model once, so that a bad setting shows here, before a run begins.

    Raises:
        ConfigError: the model, its options or the device do not exist, the engine is not installed, the masks do not
            fit the network, or there are more workers than cores.
        InfeasibleDensityError: no masks reach the density.
        DataError: the data cannot be read, or not dealt as asked.
    """
    dealt: dict[tuple[DataTable, int], tuple[FederatedDataset, Dataset | None]] = {}
    plans = []
    for config in configs:
        key = config.data, config.run.seed
        if key not in dealt:
            dealt[key] = deal(config.data, seed=config.run.seed)
        plans.append(_plan(config, *dealt[key]))
    return plans


def _plan(config: Config, data: FederatedDataset, public: Dataset | None) -> Plan:
    _check_device(config.run.device)
    require_engine(config.engine)
    model = SeededModel(
        name=config.model.name,
        in_shape=data.train.shape,
        num_classes=data.train.num_classes,
        seed=config.run.seed,
        options=config.model.options,
        tokens=data.train.is_text,
    )
    client = config.client
    plan = Plan(
        method=config.method,
        data=data,
        build_model=model,
        seed=config.run.seed,
        rounds=config.run.rounds,
        per_round=client.per_round or config.data.clients,
        client=ClientSettings(**client.model_dump(exclude={"per_round"})),
        eval_every=config.run.eval_every,
        checkpoint_every=config.run.checkpoint_every,
        min_clients=config.engine.min_clients,
        device=config.run.device,
        public=public,
        threads=client_threads(config.engine),
        narrowed=model.narrowed,
    )
    _check_masks(plan)
    return plan


def deal(table: DataTable, *, seed: int) -> tuple[FederatedDataset, Dataset | None]:
    """The data set with its clients' shares, and the server's public share where one is asked for.

    Raises:
        DataError: files are missing or damaged, or there are too few samples for the clients.
    """
    limits = {
        "image_size": table.image_size,
        "train_limit": table.train_limit,
        "test_limit": table.test_limit,
    }
    cutting = Cutting(table.tokenizer, table.context, table.truncate)
    train, test = load(table.name, data_root(table), **limits, generator=_generator(seed, 0), cutting=cutting)
    private, public = _split_public(train, table.public_share, _generator(seed, 1))
    parts = partition(
        private.y.numpy(),
        table.clients,
        scheme=table.partition,
        alpha=table.alpha,
        min_samples=table.min_samples,
        generator=_generator(seed, 2),
        groups=None if private.story is None else private.story.numpy(),
    )
    clients = tuple(torch.from_numpy(part) for part in parts)
    return FederatedDataset(train=private, test=test, clients=clients, name=table.name), public


def data_root(table: DataTable) -> Path:
    """Folder of the data files: the table's, else the environment's, else `data`."""
    return Path(table.root or os.environ.get(ROOT_VARIABLE) or "data")


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose])


def _split_public(train: Dataset, share: float, generator: np.random.Generator) -> tuple[Dataset, Dataset | None]:
    """The samples of the clients, and those of the server; a story goes to one of them as a whole."""
    if share == 0:
        return train, None
    story = torch.arange(len(train)) if train.story is None else train.story.unique(return_inverse=True)[1]
    whole = int(story.max()) + 1
    count = round(share * whole)
    if not 0 < count < whole:
        raise DataError(
            f"data.public_share = {share} of {whole} training {'samples' if train.story is None else 'texts'} is "
            f"{count}: expected at least 1 for the server and 1 for the clients; change the share"
        )
    public = torch.isin(story, torch.from_numpy(generator.permutation(whole)[:count]))
    return train.subset((~public).nonzero()[:, 0]), train.subset(public.nonzero()[:, 0])


def _check_masks(plan: Plan) -> None:
    """Makes the network and draws masks once, so that a density that fits neither shows before a run begins."""
    network = replace(plan, device="cpu").network()
    if not isinstance(plan.method, SparseMethod):
        return
    try:
        plan.method.initial_topology(network, "random", torch.Generator())
    except PatternError as error:
        raise ConfigError(f"[method] {error}") from error


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device = {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here; "
            "use --set run.device=cpu, or `fedsparse doctor` to find out why"
        )
