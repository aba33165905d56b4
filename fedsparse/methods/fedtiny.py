"""FedTiny: tiny models by adaptive batch-norm selection and progressive pruning.

Huang et al., "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS 2023, arXiv:2212.01977.
Evidence: mechanics follow the authors' development code and secondary sources; the paper's text was not at hand, so
pool size, block split and defaults are as recalled there.

Deviations: candidates differ by mask, not by weight seed; statistics and losses of the selection are weighted by
development samples, and the growth gradients by training samples (the code averages neither); batch-norm statistics
come from one pass with cumulative averaging; a candidate never exceeds the density; the dense first layer of uniform
pools is a matter of `exclude`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse import pruning
from fedsparse.data import Dataset
from fedsparse.errors import ClientError, MethodError
from fedsparse.methods import checks, regrow
from fedsparse.methods.base import register
from fedsparse.methods.roles import Client, Download, Extras, Server, Update, client_task
from fedsparse.nn import write_weights
from fedsparse.pattern import Topology, Weights
from fedsparse.pruning.allocate import whole_units

__all__ = ["FedTiny"]

_TOLERANCE = 0.02  # of a candidate's number of kept weights
_DRAWS = 10_000

Statistics = Mapping[str, Tensor]  # batch-norm buffers by name


@register
@dataclass(frozen=True, kw_only=True)
class FedTiny(regrow.AskingMethod):
    """A coarse mask chosen by the clients' losses, then refined block by block with their largest gradients.

    Attributes:
        candidates: masks in the pool; None means 0.1 / density, at least 1. One candidate needs no selection.
        blocks: groups of consecutive layers, adjusted one at a time from the output back to the input.
        dev_share: share of a client's samples used for selection.
        pretrain_epochs: epochs on the server's public data before the pool is drawn; without such data none.
    """

    name: ClassVar[str] = "fedtiny"
    density: float = 0.01
    adjust_every: int = 10
    adjust_until: int = 100
    swap_fraction: float = 0.3
    candidates: int | None = None
    blocks: int = 5
    dev_share: float = 0.1
    pretrain_epochs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("candidates", self.candidates is None or self.candidates >= 1, "at least 1, or nothing")
        alike = self.unit.share is None or self.pool_size == 1
        self._require("candidates", alike, "1: pools vary layer densities, which granularity nm fixes")
        self._require("blocks", self.blocks >= 1, "at least 1")
        self._require("dev_share", 0 < self.dev_share <= 1, "a share in (0, 1]")
        self._require("pretrain_epochs", self.pretrain_epochs >= 0, "at least 0")
        self._require("distribution", self.distribution != "global", "erk, er or uniform: pools vary layer densities")

    # ---- server: adaptive batch-norm selection
    def start(self, server: Server) -> Weights:
        weights = server.pretrain(self.pretrain_epochs)
        pool = self.pool(weights, server)
        if len(pool) == 1:
            return weights.moved_to(pool[0])
        # As sparse models: a client never holds the dense one, and 0.1 / density of them weigh a tenth of it.
        offer = {_key(c): weights.moved_to(topology) for c, topology in enumerate(pool)}
        wanted = {name: weights.dense[name] for name in _statistics_names(server.model)}
        adapted = server.ask(
            self.adapt_batchnorm,
            lambda _: Download(None, {"pool": offer}),
            check=lambda _, update: _check_statistics(update, list(offer), wanted),
        )
        pooled = _pooled_statistics(adapted, len(pool))
        replies = {_key(c): statistics for c, statistics in enumerate(pooled)}
        judged = server.ask(
            self.candidate_loss,
            lambda _: Download(None, {"statistics": replies}),
            check=lambda _, update: _check_losses(update, len(pool)),
        )
        best = lowest_pooled_loss([(update.extras["losses"], update.extras["samples"]) for update in judged])
        return weights.moved_to(pool[best]).with_dense(pooled[best])

    def pool(self, weights: Weights, server: Server) -> list[Topology]:
        """Candidate masks: layer densities scattered around the distribution's, each layer's largest weights kept.

        A single candidate has the distribution's own densities. In larger units than single weights, the numbers that
        are drawn are rounded to whole ones.
        """
        base = self.initial_topology(server.model, "magnitude", server.rng("pool"))
        scores, generator = pruning.magnitude({n: weights.weight(n) for n in base}, self.unit), server.rng("pool")
        size = self.pool_size
        counts = [base.counts] if size == 1 else [self._scattered(base, generator) for _ in range(size)]
        return [Topology.from_masks(pruning.layerwise(scores, c, self.unit), self.unit) for c in counts]

    @property
    def pool_size(self) -> int:
        """How many candidates there are."""
        return self.candidates or max(1, round(0.1 / self.density))

    def _scattered(self, base: Topology, generator: torch.Generator) -> dict[str, int]:
        """Counts d_l (1 + u), u uniform in (-0.5, 0.5), drawn until their total is at most 2 % below that of `base`."""
        units = {name: self.unit.tiling(p.shape).size for name, p in base.items()}
        for _ in range(_DRAWS):
            noise = torch.rand(len(base), generator=generator) - 0.5
            counts = {
                name: max(units[name], min(p.size, math.floor(p.nnz * (1 + float(u)))))
                for (name, p), u in zip(base.items(), noise, strict=True)
            }
            if 0 <= base.nnz - sum(counts.values()) <= _TOLERANCE * base.nnz:
                return counts if max(units.values()) == 1 else _rounded(counts, base, units)
        raise MethodError(
            f"fedtiny: no candidate with {base.nnz} kept weights within {_TOLERANCE:.0%} in {_DRAWS} draws; "
            "the density is too small or too close to 1 for a pool, use candidates = 1"
        )

    # ---- clients: adaptive batch-norm selection
    @client_task
    def adapt_batchnorm(self, client: Client) -> Extras:
        """Batch-norm statistics of every candidate on the development split, weights frozen."""
        pool = cast(Mapping[str, Weights], client.extras["pool"])
        x, _ = self._development(client)
        if len(x) == 1 and _norms(client.model):
            raise MethodError("fedtiny: batch-norm statistics need two samples, the client has one")
        statistics = {}
        for key, candidate in pool.items():
            write_weights(client.model, candidate)
            statistics[key] = _adapt(client.model, x, client.data.chunk)
        client.memory["pool"] = pool
        return {"statistics": statistics, "samples": len(x)}

    @client_task
    def candidate_loss(self, client: Client) -> Extras:
        """Summed loss of every candidate on the development split, with the pooled statistics."""
        if "pool" not in client.memory:
            raise MethodError("fedtiny: the client holds no candidates, it failed to adapt them")
        pool = cast(Mapping[str, Weights], client.memory.pop("pool"))
        statistics = cast(Mapping[str, Statistics], client.extras["statistics"])
        x, y = self._development(client)
        losses = []
        for key, candidate in pool.items():
            write_weights(client.model, candidate.with_dense(statistics[key]))
            losses.append(_summed_loss(client.model, client.data, x, y))
        return {"losses": torch.tensor(losses, dtype=torch.float64), "samples": len(y)}

    def _development(self, client: Client) -> tuple[Tensor, Tensor]:
        """The client's development split, of two samples or more: the same ones in both exchanges of one round."""
        count = max(2, round(self.dev_share * len(client.data)))
        return client.data.batch(torch.randperm(len(client.data), generator=client.rng("development"))[:count])

    # ---- progressive pruning
    def block(self, topology: Topology, round: int) -> list[str]:
        """Layers adjusted in this round: block B-1 first, then back towards the input, and round again."""
        groups = np.array_split(np.array(list(topology)), min(self.blocks, len(topology)))
        turn = round // self.adjust_every - 1
        return [str(name) for name in groups[len(groups) - 1 - turn % len(groups)]]

    def asked(self, topology: Topology, round: int) -> dict[str, int]:
        """a_l of the layers of the block: what they swap, and as many gradients are wanted of each client."""
        counts = self.swap_counts(topology, round)
        return {name: counts[name] for name in self.block(topology, round)}

    @client_task
    def train(self, client: Client) -> Extras:
        client.sgd()
        return regrow.propose(client)

    def adjust(self, server: Server, updates: Sequence[Update]) -> Topology | None:
        """Per layer of the block: drop the a_l smallest |w|, grow the a_l largest mean gradients that arrived."""
        if not self.adjusts(server.round):
            return None
        return regrow.regrown(server.weights, updates, self.asked(server.weights.topology, server.round))


def _rounded(counts: Mapping[str, int], base: Topology, units: Mapping[str, int]) -> dict[str, int]:
    """Numbers of weights that whole units make, in all at most those of `base`."""
    wanted = {name: Fraction(count) for name, count in counts.items()}
    return whole_units(wanted, {name: p.shape for name, p in base.items()}, base.nnz, units)


def _key(candidate: int) -> str:
    return str(candidate)


def lowest_pooled_loss(replies: Sequence[tuple[Any, Any]]) -> int:
    """Candidate with the lowest loss per development sample, from (summed losses `(candidates,)`, samples)."""
    total = torch.stack([torch.as_tensor(losses, dtype=torch.float64) for losses, _ in replies]).sum(0)
    return int((total / sum(samples for _, samples in replies)).argmin())


def _check_samples(update: Update) -> None:
    samples = checks.extra(update.extras, "samples", int)
    if not 1 <= samples <= update.num_samples:
        raise ClientError(f"the upload speaks for {samples} samples; expected 1 to the client's {update.num_samples}")


def _check_statistics(update: Update, candidates: Sequence[str], wanted: Mapping[str, Tensor]) -> None:
    """Refuses an answer unless it has the batch-norm statistics of every candidate, shaped like `wanted`."""
    _check_samples(update)
    statistics = checks.extra(update.extras, "statistics", dict)
    checks.names(statistics, candidates, "candidates")
    for key in candidates:
        found = checks.extra(statistics, key, dict)
        checks.names(found, list(wanted), f"statistics of candidate {key}")
        for name, like in wanted.items():
            tensor = checks.extra(found, name, Tensor)
            if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
                raise ClientError(
                    f"the upload's {name!r} is {tensor.dtype} {tuple(tensor.shape)}; "
                    f"expected {like.dtype} {tuple(like.shape)}"
                )


def _check_losses(update: Update, candidates: int) -> None:
    """Refuses an answer unless it has one loss a candidate."""
    _check_samples(update)
    losses = checks.extra(update.extras, "losses", Tensor)
    if (losses.shape, losses.dtype) != ((candidates,), torch.float64):
        raise ClientError(
            f"the upload's losses are {losses.dtype} {tuple(losses.shape)}; expected torch.float64 ({candidates},)"
        )


def _pooled_statistics(updates: Sequence[Update], candidates: int) -> list[dict[str, Tensor]]:
    """Means of the clients' batch-norm statistics for each candidate, weighted by development samples."""
    samples = torch.tensor([cast(int, u.extras["samples"]) for u in updates], dtype=torch.float64)
    sums: list[dict[str, Tensor]] = [{} for _ in range(candidates)]
    dtypes: dict[str, torch.dtype] = {}
    for update, share in zip(updates, samples / samples.sum(), strict=True):
        sent = cast(Mapping[str, Statistics], update.extras["statistics"])
        for candidate, found in enumerate(sums):
            for name, tensor in sent[_key(candidate)].items():
                dtypes[name] = tensor.dtype
                term = share * tensor.double()
                found[name] = found[name] + term if name in found else term
    return [{name: tensor.to(dtypes[name]) for name, tensor in found.items()} for found in sums]


def _norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    kind = nn.modules.batchnorm._BatchNorm
    return {path: m for path, m in model.named_modules() if isinstance(m, kind) and m.track_running_stats}


def _statistics_names(model: nn.Module) -> list[str]:
    return [f"{path}.{kind}" for path in _norms(model) for kind in ("running_mean", "running_var")]


def _adapt(model: nn.Module, x: Tensor, chunk: int) -> dict[str, Tensor]:
    """Running statistics after one pass over `x`, each chunk weighing the same (momentum None accumulates)."""
    norms, device = _norms(model), next(model.parameters()).device
    if not norms:  # of a network without batch norm the candidates compete as they are
        return {}
    momenta = {path: norm.momentum for path, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for part in x.split(chunk):
            if len(part) > 1:  # a chunk of one has no variance to speak of
                model(part.to(device))
    for path, norm in norms.items():
        norm.momentum = momenta[path]
    return {name: model.get_buffer(name).clone().cpu() for name in _statistics_names(model)}


def _summed_loss(model: nn.Module, data: Dataset, x: Tensor, y: Tensor) -> float:
    """Of the samples x and their labels y, which are some of `data`."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        parts = zip(x.split(data.chunk), y.split(data.chunk), strict=True)
        return sum(float(data.task.scores(model(a.to(device)), b.to(device))[:, 0].sum()) for a, b in parts)
