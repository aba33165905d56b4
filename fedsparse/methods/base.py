"""What a method is: settings in a frozen dataclass, and hooks that a round calls."""

import copy
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

import fedsparse.methods
from fedsparse import pruning
from fedsparse.errors import ConfigError, MethodError, PatternError
from fedsparse.methods.aggregation import mean
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task
from fedsparse.nn import sparsify, topology
from fedsparse.pattern import Granularity, Topology, Weights, parse
from fedsparse.pruning.allocate import DISTRIBUTIONS
from fedsparse.pruning.rounding import as_meant

__all__ = ["START_SCORES", "DrawnMethod", "DynamicMethod", "Method", "SparseMethod", "find", "methods", "register"]

START_SCORES = ("magnitude", "random")  # by which first masks can be drawn

_registered: dict[str, type["Method"]] = {}
_Class = TypeVar("_Class", bound=type["Method"])


@dataclass(frozen=True, kw_only=True)
class Method:
    """Dense federated averaging, in hooks that a method overrides.

    A method holds settings only, so it is the same object on every machine; state lives in `server.memory` and
    `client.memory`.

    Attributes:
        name: what configurations call it.
        client_masks: whether clients may answer the training of an adjusting round with masks of their own.
        client_counts: whether those masks may keep another number of weights in a layer.
        weights_back: whether clients answer a training with their weights; otherwise extras say what became of them.
    """

    name: ClassVar[str]
    client_masks: ClassVar[bool] = False
    client_counts: ClassVar[bool] = False
    weights_back: ClassVar[bool] = True

    # ---- on every machine
    def width(self, parameters: Callable[[float], int]) -> float:
        """Share of its channels, in (0, 1], with which the plain network is made.

        `parameters(share)` counts the trainable parameters it then has, and refuses models without a width.
        """
        return 1.0

    def build(self, model: nn.Module) -> nn.Module:
        """The network the method trains, from the plain one; called wherever a model is made."""
        return model

    # ---- on the server
    def start(self, server: Server) -> Weights:
        """Weights, and by their topology the masks, that round 0 begins with."""
        return server.weights

    def download(self, server: Server, client_id: int) -> Download:
        """What a cohort member gets for its local training."""
        return Download(server.weights)

    def check(self, sent: Download, update: Update) -> None:
        """Judges the extras of one training answer by what the client was sent; see `Server.ask`.

        Names, shapes, types and masks of its weights have been compared and its numbers found finite by then.
        """

    def aggregate(self, server: Server, updates: Sequence[Update]) -> Weights:
        """New global weights from the updates of a round."""
        return mean(updates)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """New topology after aggregation, or None to keep the masks. Grown weights become 0."""
        return None

    def adjusts(self, round: int) -> bool:
        """Whether masks are adjusted in this round."""
        return False

    def costs(self, topology: Topology, round: int) -> CostRow:
        """What a client with these masks costs in a round beyond plain training, for the ledger."""
        return CostRow()

    def metrics(self, server: Server) -> Mapping[str, float | None]:
        """Numbers of its own, finite or None, for the record of the round that has just been adjusted.

        They come after everyone's under names of their own, the same in every round.
        """
        return {}

    # ---- on a client
    @client_task
    def train(self, client: Client) -> Extras:
        """Local training; what it returns is uploaded beside the weights."""
        client.sgd()
        return {}

    def _require(self, setting: str, valid: bool, expected: str) -> None:
        """Raises ConfigError unless the value of `setting` is valid."""
        if not valid:
            raise ConfigError(f"{self.name}: {setting} = {getattr(self, setting)!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class SparseMethod(Method):
    """Settings of all methods with masks.

    Attributes:
        density: kept share of all trainable parameters, in (0, 1].
        distribution: how layers share it: `erk`, `er`, `uniform` or `global`.
        granularity: unit of pruning, as for `sparsify`: `element`, `vector:G`, `block:B`, `nm:N:M` or `channel`. `nm`
            fixes the density at N / M of pruned layers.
        exclude: what is never pruned: `output`, `ends`, `none`, or the name of a layer.
        fixed_size: whether each layer keeps its number of weights; otherwise the density is an upper limit.
    """

    fixed_size: ClassVar[bool] = True
    density: float = 0.1
    distribution: str = "erk"
    granularity: str = "element"
    exclude: str = "output"

    def __post_init__(self) -> None:
        known = (*DISTRIBUTIONS, "global")
        self._require("density", 0 < self.density <= 1, "a share in (0, 1]")
        self._require("distribution", self.distribution in known, f"one of {', '.join(known)}")
        try:
            share = parse(self.granularity).share
        except PatternError as error:
            raise ConfigError(f"{self.name}: granularity = {self.granularity!r}; {error}") from error
        if share is not None:
            # What stays dense can only add to it; `sparsify`, which knows the model, checks the rest.
            fits = share <= as_meant(self.density) < 1
            self._require("density", fits, f"{float(share):.4g}, which granularity {self.granularity!r} fixes")

    @property
    def unit(self) -> Granularity:
        """`granularity`, read."""
        return parse(self.granularity)

    def initial_topology(
        self,
        model: nn.Module,
        score: str | Mapping[str, Tensor],
        generator: torch.Generator,
        *,
        distribution: str | None = None,
    ) -> Topology:
        """Masks of the method's density on the weights of `model`, which is left as it is.

        `score` is as for `sparsify`; `distribution` is the method's by default.
        """
        pruned = sparsify(
            copy.deepcopy(model),
            self.density,
            distribution=distribution or self.distribution,
            score=score,
            granularity=self.granularity,
            exclude=self.exclude,
            generator=generator,
        )
        return topology(pruned)


@dataclass(frozen=True, kw_only=True)
class DynamicMethod(SparseMethod):
    """Settings of methods that adjust their masks.

    Attributes:
        adjust_every: rounds between adjustments (Delta T); the first comes after that many rounds.
        adjust_until: first round without adjustment (T_end).
        swap_fraction: share of a layer's kept weights swapped at round 0 (alpha), falling to 0 as a cosine.
    """

    adjust_every: int = 10
    adjust_until: int = 300
    swap_fraction: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("adjust_every", self.adjust_every >= 1, "a number of rounds of at least 1")
        self._require("adjust_until", self.adjust_until >= 0, "a round of at least 0")
        self._require("swap_fraction", 0 <= self.swap_fraction <= 1, "a share in [0, 1]")

    def adjusts(self, round: int) -> bool:
        return pruning.adjusts(round, self.adjust_every, self.adjust_until)

    def costs(self, topology: Topology, round: int) -> CostRow:
        """One mini-batch for the largest pruned gradients, of which position and value are held."""
        swaps = sum(self.swap_counts(topology, round).values()) if self.adjusts(round) else 0
        return CostRow(probes=min(swaps, 1), buffer_bytes=8 * swaps)

    def swap_counts(self, topology: Topology, round: int) -> dict[str, int]:
        """a_l: weights to swap in each layer of `topology` in this round."""
        return pruning.swap_counts(topology, pruning.cosine_share(self.swap_fraction, round, self.adjust_until))


@dataclass(frozen=True, kw_only=True)
class DrawnMethod(SparseMethod):
    """Settings of methods whose first masks are drawn in one step; to be named before `DynamicMethod` where both are.

    Attributes:
        score: what the first masks keep: `random` positions, or the largest `magnitude` of the initial weights.
    """

    score: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("score", self.score in START_SCORES, f"one of {', '.join(START_SCORES)}")

    def start(self, server: Server) -> Weights:
        return server.weights.moved_to(self.initial_topology(server.model, self.score, server.rng("mask")))


# ---- finding methods by name
def register(method: _Class) -> _Class:
    """Class decorator that makes a method known by its `name`.

    Raises:
        MethodError: the class has no name, or another class has the same.
    """
    name = getattr(method, "name", "")
    if not isinstance(name, str) or not name:
        raise MethodError(f"{method.__name__} needs a class attribute `name: ClassVar[str]` to be registered")
    known = _registered.get(name)
    if known is not None and f"{known.__module__}.{known.__qualname__}" != f"{method.__module__}.{method.__qualname__}":
        raise MethodError(f"{method.__name__} and {known.__name__} are both named {name!r}; rename one of them")
    _registered[name] = method
    return method


def methods() -> list[str]:
    """Names of all methods: this package's, those of installed plug-ins, and those registered by the program."""
    for module in pkgutil.iter_modules(fedsparse.methods.__path__):
        importlib.import_module(f"fedsparse.methods.{module.name}")
    for plugin in entry_points(group="fedsparse.methods"):
        register(_loaded(plugin))
    return sorted(_registered)


def _loaded(plugin: EntryPoint) -> type[Method]:
    try:
        found = plugin.load()
    except Exception as error:  # whatever a foreign package raises when it is imported
        raise MethodError(
            f"plug-in {plugin.name!r} ({plugin.value}) cannot be imported: {error}; fix or remove it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise MethodError(f"plug-in {plugin.name!r} ({plugin.value}) is no subclass of fedsparse.methods.base.Method")
    return found


def find(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        ConfigError: there is none.
    """
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown method {name!r}{hint} (known: {', '.join(known)})")
    return _registered[name]
