"""Averages of client updates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsparse.errors import MethodError
from fedsparse.methods.roles import Update, weights_of
from fedsparse.pattern import Weights

__all__ = ["mean"]


def mean(updates: Sequence[Update]) -> Weights:
    """Sample-weighted mean of weights that share one topology, over compact values.

    W = sum_k n_k W_k / sum_k n_k (McMahan et al., AISTATS 2017), summed in float64 in the order of client numbers, so
    that the order of arrival changes nothing. Integer buffers, which count batches, take their largest value.

    Raises:
        MethodError: there is no update, or topologies differ.
    """
    if not updates:
        raise MethodError("there is no update to average")
    ordered = sorted(updates, key=lambda update: update.client_id)
    all_weights = weights_of(ordered)
    topology = all_weights[0].topology
    if any(w.topology.digest != topology.digest for w in all_weights):
        raise MethodError("mean() averages weights of one topology, the updates have several")
    shares = torch.tensor([update.num_samples for update in ordered], dtype=torch.float64)
    shares /= shares.sum()
    values = {name: _mean([w.values[name] for w in all_weights], shares) for name in topology}
    dense = {name: _mean([w.dense[name] for w in all_weights], shares) for name in all_weights[0].dense}
    return Weights(topology, values, dense)


def _mean(tensors: list[Tensor], shares: Tensor) -> Tensor:
    if not tensors[0].is_floating_point():
        return torch.stack(tensors).amax(0)
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total += share * tensor.double()  # a float64 scalar alone would leave the product in float32
    return total.to(tensors[0].dtype)
