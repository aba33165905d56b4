"""PruneFL: which weights are kept, and how many, follows from the gradient each second of a round buys.

Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE TNNLS 34(10), 2023,
arXiv:1909.12326. Evidence: the authors' code; the paper's text was not at hand. `prunefl_fixed` is what other papers
compare with under this name.

Deviations: the time of a weight is that of sending it plus one per place its layer is used at, where the code has
measured figures of single layers for three networks; the first stage counts in local epochs of its client, not in
batches of 20; weights outside pruned layers are sent as one sum of squares, all that the rule asks of them; a client
that missed rounds sends what it summed since the last adjustment. Weights grown start at 0: the code revives values
the server kept from before. `distribution` has no say, sizes of layers are free. Larger units than single weights have
the gain and the time of all their weights and are of the core by their root mean square; `nm` is refused, for a free
size is what the method is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.errors import ClientError
from fedsparse.methods import checks
from fedsparse.methods.base import DynamicMethod, register
from fedsparse.methods.roles import Client, CostRow, Download, Extras, Server, Update, client_task
from fedsparse.methods.squares import Squares, all_gradients, check_squares, cost_row, totals
from fedsparse.nn import SparseLayer, read_weights, sparse_layers
from fedsparse.pattern import Pattern, Topology, Weights
from fedsparse.pruning.rounding import floor_share

__all__ = ["PruneFL", "core"]

_QUIET_CHANGE, _QUIET_TIMES = 0.1, 5  # the first stage ends when the size has changed by no more, so often in a row
_LEARNT = 1.5  # times the accuracy of guessing, before which the first stage prunes nothing
_CHUNK = 256  # samples evaluated at a time


@register
@dataclass(frozen=True, kw_only=True)
class PruneFL(DynamicMethod):
    """One client prunes the dense network, then all adapt it: kept is what lowers the risk most per second.

    The seconds that are preset were measured by the authors for VGG-11 on CIFAR-10, 5 local updates a round on
    a link of 1 MB/s; other networks and clients have others. `density` is the most that may be kept.

    Attributes:
        swap_fraction: largest share of a layer's kept weights that an adjustment drops (r), falling by half-lives.
        half_life: rounds in which that share halves.
        fixed_seconds: time of a round that pruning does not change (c).
        weight_seconds: time to send one kept weight.
        use_seconds: time to compute with one kept weight, in a round, at one of the places its layer is used at.
        initial_epochs: local epochs between two adjustments of the first stage.
        initial_adjustments: most adjustments of the first stage.
    """

    name: ClassVar[str] = "prunefl"
    fixed_size: ClassVar[bool] = False
    density: float = 1.0
    adjust_every: int = 50
    adjust_until: int = 10_000
    swap_fraction: float = 0.3
    half_life: float = 10_000.0
    fixed_seconds: float = 86.8495
    weight_seconds: float = 5.561621e-6
    use_seconds: float = 0.0
    initial_epochs: int = 5
    initial_adjustments: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("granularity", self.unit.share is None, "one that leaves sizes free; prunefl_fixed runs with nm")
        self._require("half_life", self.half_life > 0, "a number of rounds above 0")
        self._require("fixed_seconds", self.fixed_seconds >= 0, "seconds of at least 0")
        self._require("weight_seconds", self.weight_seconds > 0, "seconds above 0")
        self._require("use_seconds", self.use_seconds >= 0, "seconds of at least 0")
        self._require("initial_epochs", self.initial_epochs >= 1, "at least 1")
        self._require("initial_adjustments", self.initial_adjustments >= 0, "at least 0")

    # ---- first stage, at one client
    def start(self, server: Server) -> Weights:
        prunable = pruning.prunable(server.model, self.exclude)
        shapes = {name: tuple(weight.shape) for name, weight in prunable.items()}
        trainable = sum(p.numel() for p in server.model.parameters() if p.requires_grad)
        others = trainable - sum(weight.numel() for weight in prunable.values())
        limit = pruning.budget(shapes, self.density, others=others, granularity=self.unit)
        masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        full = server.weights.moved_to(Topology.from_masks(masks, self.unit))
        first = server.ask_one(self.prune_alone, lambda _: Download(full, {"limit": limit}), check=_check_first)
        uses = cast(Mapping[str, int], first.extras["uses"])
        server.memory["uses"], server.memory["limit"] = uses, limit
        weights = cast(Weights, first.extras["weights"])
        if weights.topology.nnz <= limit:
            return weights
        scores = pruning.magnitude({name: weights.weight(name) for name in shapes}, self.unit)
        kept = pruning.globally(scores, limit, granularity=self.unit)
        return weights.moved_to(Topology.from_masks(kept, self.unit))

    @client_task
    def prune_alone(self, client: Client) -> Extras:
        """Trains and adjusts the network by itself; squares are added up step by step between two adjustments."""
        uses, limit = _uses(client), cast(int, client.extras["limit"])
        squares, quiet = Squares({}, 0.0), 0
        for _ in range(self.initial_adjustments):
            with all_gradients(client.model, term=torch.square) as found:
                client.sgd(epochs=self.initial_epochs)
            squares = squares.plus(Squares.of(client.model, found.sums))
            if _accuracy(client) < _LEARNT / client.data.num_classes:
                continue
            weights = read_weights(client.model)
            adjusted = self.adjusted(weights, squares, uses=uses, limit=limit, round=0)
            client.adopt(adjusted)
            squares = Squares({}, 0.0)
            change = abs(adjusted.nnz - weights.topology.nnz) / weights.topology.nnz
            quiet = quiet + 1 if change <= _QUIET_CHANGE else 0
            if quiet == _QUIET_TIMES:
                break
        return {"weights": read_weights(client.model), "uses": uses}

    # ---- all clients
    def download(self, server: Server, client_id: int) -> Download:
        return Download(server.weights, {"adjusting": True} if self.adjusts(server.round) else {})

    @client_task
    def train(self, client: Client) -> Extras:
        """Local training; beside it (sum of the round's gradients)^2 times samples, summed up to the next adjustment.

        Sums that an adjustment has overtaken are dropped.
        """
        before, due = cast(Mapping[str, Any], client.memory.pop("squares", {})), self.next_adjustment(client.round)
        if due is None:
            client.sgd()
            return {}
        with all_gradients(client.model, term=torch.clone) as found:
            client.sgd()
        squares = Squares.of(client.model, {name: g.square() * len(client.data) for name, g in found.sums.items()})
        if before.get("due") == due:
            squares = squares.plus(Squares(before["weights"], before["rest"]))
        if client.round == due:
            return {"squares": squares.weights, "rest": squares.rest}
        client.memory["squares"] = {"due": due, "weights": squares.weights, "rest": squares.rest}
        return {}

    def next_adjustment(self, round: int) -> int | None:
        """The first adjusting round from `round` on; None after the last."""
        due = max(1, -(-round // self.adjust_every)) * self.adjust_every
        return due if self.adjusts(due) else None

    def check(self, sent: Download, update: Update) -> None:
        if sent.extras:
            assert sent.weights is not None, "a training starts from weights"
            check_squares(update, sent.weights.topology, sent.weights.topology)
            if checks.extra(update.extras, "rest", float) < 0:
                raise ClientError(f"the upload's 'rest' is {update.extras['rest']}, a sum of squares is not below 0")

    def costs(self, topology: Topology, round: int) -> CostRow:
        """Dense gradients at every step up to the last adjustment; squares of all weights in adjusting ones."""
        watched = topology if self.next_adjustment(round) is not None else ()
        return cost_row(topology, watched, uploaded=self.adjusts(round))

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        if not self.adjusts(server.round):
            return None
        topology = server.weights.topology
        weights = totals(updates, topology, topology, [1.0] * len(updates))
        squares = Squares(weights, sum(checks.extra(update.extras, "rest", float) for update in updates))
        uses, limit = cast(Mapping[str, int], server.memory["uses"]), cast(int, server.memory["limit"])
        return self.adjusted(server.weights, squares, uses=uses, limit=limit, round=server.round)

    # ---- the rule
    def adjusted(
        self, weights: Weights, squares: Squares, *, uses: Mapping[str, int], limit: int, round: int
    ) -> Topology:
        """Cores stay; then, over all layers, whatever raises the sum of squares per second."""
        share = float(f"{self.swap_fraction * 0.5 ** (round / self.half_life):.12f}")
        tilings = {name: self.unit.tiling(pattern.shape) for name, pattern in weights.topology.items()}
        seconds = {name: self.weight_seconds + self.use_seconds * uses[name] for name in tilings}
        kept = pruning.by_gain(
            {n: t.sums(core(weights.topology[n], weights.values[n], share).double()) > 0 for n, t in tilings.items()},
            {name: tiling.sums(squares.weights[name]) for name, tiling in tilings.items()},
            seconds,
            base=(squares.rest, self.fixed_seconds),
            limit=limit,
            sizes={name: tiling.sizes() for name, tiling in tilings.items()},
        )
        masks = {name: tilings[name].spread(mask).view(weights.topology[name].shape) for name, mask in kept.items()}
        return Topology.from_masks(masks, self.unit)


def core(pattern: Pattern, values: Tensor, share: float) -> Tensor:
    """Mask, in main memory, of kept weights no smaller than the floor(share * K)-th smallest |w|, counted from 0.

    One of them is in it in any case. Larger units are ranked by their root mean square, and are in it as a whole.
    """
    pattern = pattern.to("cpu")
    magnitudes, size = pruning.magnitudes(pattern, values), pattern.granularity.tiling(pattern.shape).size
    outside = min(pruning.whole(floor_share(share, pattern.nnz), size), len(magnitudes) - 1)
    inside = (magnitudes >= magnitudes.sort().values[outside]).nonzero().squeeze(1)
    flags = torch.zeros(pattern.nnz).index_fill_(0, pruning.places_of(pattern, inside), 1.0)
    return pattern.scatter(flags) > 0


def _accuracy(client: Client) -> float:
    device = next(client.model.parameters()).device
    client.model.eval()
    right = 0
    with torch.no_grad():
        for positions in torch.arange(len(client.data)).split(_CHUNK):
            x, y = client.data.batch(positions)
            right += int((client.model(x.to(device)).argmax(1).cpu() == y).sum())
    return right / len(client.data)


def _uses(client: Client) -> dict[str, int]:
    """Places of one sample that each pruned layer's weights are used at: pixels of its output."""
    names, found = {layer: name for name, layer in sparse_layers(client.model).items()}, dict[str, int]()

    def count(layer: SparseLayer, _inputs: object, output: Tensor) -> None:
        found[names[layer]] = output.numel() // layer.pattern.shape[0]

    hooks = [layer.register_forward_hook(count) for layer in names]
    x, _ = client.data.batch(torch.tensor([0]))
    client.model.eval()
    with torch.no_grad():
        client.model(x.to(next(client.model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return found


def _check_first(sent: Download, update: Update) -> None:
    """Refuses an answer of the first stage that is no state of the network with the same layers pruned."""
    assert sent.weights is not None, "the first stage starts from weights"
    weights, uses = checks.extra(update.extras, "weights", Weights), checks.extra(update.extras, "uses", dict)
    sent.weights.require_shapes(weights, here="the sent weights", there="the upload")
    checks.names(weights.topology, list(sent.weights.topology), "pruned weights")
    checks.names(uses, list(sent.weights.topology), "'uses'")
    sent_types = {name: tensor.dtype for name, tensor in sent.weights.items()}
    if {name: tensor.dtype for name, tensor in weights.items()} != sent_types:
        raise ClientError("the upload's weights are of other types than the ones sent")
    for name, pattern in sent.weights.topology.items():
        if weights.topology[name].granularity != pattern.granularity:
            raise ClientError(f"the upload's {name!r} has granularity {weights.topology[name].granularity}")
    for name in uses:
        if checks.extra(uses, name, int) < 1 or weights.topology[name].nnz < 1:
            raise ClientError(f"the upload keeps nothing of {name!r}, or says that it is used nowhere")
