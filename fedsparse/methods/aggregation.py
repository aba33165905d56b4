"""Averages of client updates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.errors import MethodError
from fedsparse.methods.roles import Update, weights_of
from fedsparse.pattern import Pattern, Topology, Weights

__all__ = ["masked_mean", "masked_mean_with_absent", "mean"]


def mean(updates: Sequence[Update]) -> Weights:
    """Sample-weighted mean of weights that share one topology, over compact values.

    W = sum_k n_k W_k / sum_k n_k (McMahan et al., AISTATS 2017), summed in float64 in the order of client numbers, so
    that the order of arrival changes nothing. Integer buffers, which count batches, take their largest value.

    Raises:
        MethodError: there is no update, or topologies differ.
    """
    all_weights, shares = _ordered(updates)
    topology = all_weights[0].topology
    if not _share_topology(all_weights):
        raise MethodError("mean() averages weights of one topology, the updates have several")
    values = {name: _mean([w.values[name] for w in all_weights], shares) for name in topology}
    dense = {name: _mean([w.dense[name] for w in all_weights], shares) for name in all_weights[0].dense}
    return Weights(topology, values, dense)


def masked_mean(updates: Sequence[Update], *, old: Weights | None = None) -> Weights:
    """Mean at each position over the clients that keep it; weights may have several topologies of one granularity.

    W_i = sum_k n_k m_ki W_ki / sum_k n_k m_ki (Bibikar et al., AAAI 2022). Dense tensors are averaged as in `mean`,
    and so is everything where all clients share one topology. Sums are float64 in the order of client numbers; beside
    the updates, the memory is that of one layer.

    Args:
        old: whose values the positions get that no update covers; a weight that is dense in `old` comes back dense.
            Without it only covered positions are kept: the topology is the union of the clients', of which `nm`,
            that allows no union, keeps the N of M largest means.

    Raises:
        MethodError: there is no update, or the clients prune different weights.
    """
    all_weights, shares = _ordered(updates)
    if old is None and _share_topology(all_weights):
        return mean(updates)
    names = list(all_weights[0].topology)
    if any(list(w.topology) != names for w in all_weights):
        raise MethodError("masked_mean() averages clients that prune the same weights, these prune different ones")
    patterns, values = {}, {}
    dense = {name: _mean([w.dense[name] for w in all_weights], shares) for name in all_weights[0].dense}
    for name in names:
        sent = [(w.topology[name], w.values[name]) for w in all_weights]
        found, covered = _covered_mean(sent, shares)
        if old is not None:
            found = torch.where(covered, found, old.weight(name).reshape(-1))
            if name not in old.topology:
                dense[name] = found.view(sent[0][0].shape)
                continue
            covered[old.topology[name].flat] = True
        first = sent[0][0]
        patterns[name] = _union(covered, found, first)
        values[name] = found[patterns[name].flat]
    return Weights(Topology(patterns), values, dense)


def _union(covered: Tensor, found: Tensor, like: Pattern) -> Pattern:
    """Pattern of covered positions `(size,)`: all, or those of largest |mean| where the granularity fixes how many."""
    if like.granularity.share is None:
        return Pattern.from_mask(covered.view(like.shape), like.granularity)
    positions = covered.nonzero().squeeze(1)
    return pruning.likewise(like, positions, found[positions].abs())


def masked_mean_with_absent(updates: Sequence[Update], old: Weights, absent_samples: int) -> Weights:
    """`masked_mean` in which clients that sent nothing count with the old global weights and masks.

    W_i = (sum_k n_k m_ki W_ki + n_rest m_i W_i) / (sum_k n_k m_ki + n_rest m_i), FedSGC (Tian et al., 2024), and the
    same with every m = 1 for dense tensors.

    Args:
        old: the global weights that the round began with.
        absent_samples: n_rest, samples of the clients without an update; with 0 it is `masked_mean`.
    """
    if not absent_samples:
        return masked_mean(updates)
    absent = Update(-1, absent_samples, old, {})  # as one more client, in front of the others
    return masked_mean([*updates, absent])


def _ordered(updates: Sequence[Update]) -> tuple[list[Weights], Tensor]:
    """Weights of the updates by client number, and the share of each `(clients,)` float64."""
    if not updates:
        raise MethodError("there is no update to average")
    ordered = sorted(updates, key=lambda update: update.client_id)
    shares = torch.tensor([update.num_samples for update in ordered], dtype=torch.float64)
    return weights_of(ordered), shares / shares.sum()


def _share_topology(all_weights: Sequence[Weights]) -> bool:
    return len({weights.topology.digest for weights in all_weights}) == 1


def _covered_mean(sent: Sequence[tuple[Pattern, Tensor]], shares: Tensor) -> tuple[Tensor, Tensor]:
    """Masked mean of one weight, 0 where nobody keeps it, and where somebody does; both `(size,)`."""
    size, dtype = sent[0][0].size, sent[0][1].dtype
    total, kept = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for (pattern, values), share in zip(sent, shares, strict=True):
        flat = pattern.flat
        total[flat] += share * values.double()
        kept[flat] += share
    covered = kept > 0
    return torch.where(covered, total / kept, 0.0).to(dtype), covered


def _mean(tensors: list[Tensor], shares: Tensor) -> Tensor:
    if not tensors[0].is_floating_point():
        return torch.stack(tensors).amax(0)
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.double()  # a float64 scalar alone would leave the product in float32
    return total.to(tensors[0].dtype)
