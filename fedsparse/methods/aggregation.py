"""Averages of client updates, which are looked at one after the other.

Sums are float64 in the order of client numbers, so that the order of arrival changes nothing. Their memory, about twice
that of the dense model for `mean` and four times for `masked_mean`, does not depend on how many updates there are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedsparse import pruning
from fedsparse.errors import MethodError
from fedsparse.methods.roles import Update, weights_of
from fedsparse.pattern import Pattern, Topology, Weights

__all__ = ["masked_mean", "masked_mean_with_absent", "mean"]


def mean(updates: Sequence[Update], weights: Callable[[Update], Weights] = weights_of) -> Weights:
    """Sample-weighted mean of weights that share one topology, over compact values.

    W = sum_k n_k W_k / sum_k n_k (McMahan et al., AISTATS 2017). Integer buffers, which count batches, take their
    largest value.

    Args:
        weights: makes the weights of an update, for those that upload something else.

    Raises:
        MethodError: there is no update, or topologies differ.
    """
    topology, sums = Topology(), dict[str, _Mean]()
    for update, share in _ordered(updates):
        found = weights(update)
        if not sums:
            topology, sums = found.topology, {name: _Mean(tensor) for name, tensor in found.items()}
        elif found.topology.digest != topology.digest:
            raise MethodError("mean() averages weights of one topology, the updates have several")
        tensors = dict(found.items())
        for name, summed in sums.items():
            summed.add(tensors[name], share)
    means = {name: summed.result() for name, summed in sums.items()}
    dense = {name: tensor for name, tensor in means.items() if name not in topology}
    return Weights(topology, {name: means[name] for name in topology}, dense)


def masked_mean(updates: Sequence[Update], *, old: Weights | None = None) -> Weights:
    """Mean at each position over the clients that keep it; weights may have several topologies of one granularity.

    W_i = sum_k n_k m_ki W_ki / sum_k n_k m_ki (Bibikar et al., AAAI 2022). Dense tensors are averaged as in `mean`,
    and so is everything where all clients share one topology. All layers are summed in one pass over the updates:
    one layer's sums at a time would need less memory, but every update would be decoded once a layer.

    Args:
        old: whose values the positions get that no update covers; a weight that is dense in `old` comes back dense.
            Without it only covered positions are kept: the topology is the union of the clients', of which `nm`,
            that allows no union, keeps the N of M largest means.

    Raises:
        MethodError: there is no update, or the clients prune different weights.
    """
    ordered = _ordered(updates)
    first = weights_of(ordered[0][0])
    if old is None and all(weights_of(update).topology.digest == first.topology.digest for update, _ in ordered):
        return mean(updates)
    covered_sums = {name: _MaskedMean(first.topology[name], values) for name, values in first.values.items()}
    sums = {name: _Mean(tensor) for name, tensor in first.dense.items()}
    for update, share in ordered:
        sent = weights_of(update)
        if list(sent.topology) != list(first.topology):
            raise MethodError("masked_mean() averages clients that prune the same weights, these prune different ones")
        for name, pattern in sent.topology.items():
            covered_sums[name].add(pattern, sent.values[name], share)
        for name, summed in sums.items():
            summed.add(sent.dense[name], share)
    patterns, values = {}, {}
    dense = {name: summed.result() for name, summed in sums.items()}
    for name, like in first.topology.items():
        found, covered = covered_sums.pop(name).result()
        if old is not None:
            found = torch.where(covered, found, old.weight(name).reshape(-1))
            if name not in old.topology:
                dense[name] = found.view(like.shape)
                continue
            covered[old.topology[name].flat] = True
        patterns[name] = _union(covered, found, like)
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


def _ordered(updates: Sequence[Update]) -> list[tuple[Update, Tensor]]:
    """Updates by client number, each with its share of the samples, a float64 scalar."""
    if not updates:
        raise MethodError("there is no update to average")
    ordered = sorted(updates, key=lambda update: update.client_id)
    samples = torch.tensor([update.num_samples for update in ordered], dtype=torch.float64)
    return list(zip(ordered, samples / samples.sum(), strict=True))


class _MaskedMean:
    """Masked mean of one weight, of which clients keep different positions.

    Args:
        pattern, values: those of one client.
    """

    def __init__(self, pattern: Pattern, values: Tensor) -> None:
        self._dtype = values.dtype
        self._total = torch.zeros(pattern.size, dtype=torch.float64)
        self._kept = torch.zeros(pattern.size, dtype=torch.float64)

    def add(self, pattern: Pattern, values: Tensor, share: Tensor) -> None:
        """One more client."""
        flat = pattern.flat
        self._total[flat] += share * values.double()
        self._kept[flat] += share

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean, 0 where nobody keeps the weight, and where somebody does; both `(size,)`."""
        covered = self._kept > 0
        return torch.where(covered, self._total / self._kept, 0.0).to(self._dtype), covered


class _Mean:
    """Mean of one tensor; of integers, the largest.

    Args:
        like: that of one client.
    """

    def __init__(self, like: Tensor) -> None:
        self._dtype = like.dtype
        self._found = torch.zeros_like(like, dtype=torch.float64) if like.is_floating_point() else like.clone()

    def add(self, tensor: Tensor, share: Tensor) -> None:
        """One more client."""
        if self._found.is_floating_point():
            self._found += share * tensor.double()  # a float64 scalar alone would leave the product in float32
        else:
            self._found = torch.maximum(self._found, tensor)

    def result(self) -> Tensor:
        """In the type of the tensors."""
        return self._found.to(self._dtype)
