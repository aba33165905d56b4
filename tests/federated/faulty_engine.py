"""An engine whose clients fail as told, around any other engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from fedsparse import wire
from fedsparse.federated.engines.base import Engine, Reply, Request
from fedsparse.pattern import Topology, Weights
from fedsparse.wire import Payload

__all__ = ["FaultyEngine"]


class FaultyEngine:
    """Does to requests and replies what `faults` says for an exchange and a client.

    Attributes:
        sent: requests of each exchange, as the server made them.
    """

    def __init__(self, inner: Engine, faults: Mapping[tuple[int, int], str], topology: Topology) -> None:
        self._inner = inner
        self._faults = faults
        self._topology = topology
        self._late: list[Reply] = []
        self.sent: list[list[Request]] = []

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        number = len(self.sent)
        self.sent.append(list(requests))
        faults = [self._faults.get((number, request.client_id), "") for request in requests]
        delivered = [self._spoilt(request, fault) for request, fault in zip(requests, faults, strict=True)]
        replies, self._late = self._late, []
        for reply, fault in zip(self._inner.exchange(delivered), faults, strict=True):
            replies += self._arriving(reply, fault)
        return replies

    def _spoilt(self, request: Request, fault: str) -> Request:
        if fault == "download damaged":
            return replace(request, blob=request.blob[:-1] + bytes([request.blob[-1] ^ 1]))
        if fault == "download of masks not held":
            message = self._decoded(request.blob)
            other = _moved(message)
            assert other.weights is not None
            return replace(request, blob=wire.encode(other, known={other.weights.topology.digest}))
        return request

    def _arriving(self, reply: Reply, fault: str) -> list[Reply]:
        if fault == "late":
            self._late.append(reply)
        if fault in ("late", "dropped"):
            return []
        if fault == "twice":
            return [reply, reply]
        if fault == "damaged, then whole":
            assert reply.blob is not None
            return [replace(reply, blob=reply.blob[:-3]), reply]
        if fault == "stranger":
            return [reply, replace(reply, client_id=99)]
        if fault in self._uploads:
            assert reply.blob is not None
            return [replace(reply, blob=self._uploads[fault](self, reply.blob))]
        return [reply]

    def _decoded(self, blob: bytes) -> Payload:
        return wire.decode(blob, topologies={self._topology.digest: self._topology})

    def _not_a_number(self, blob: bytes) -> bytes:
        message = self._decoded(blob)
        assert message.weights is not None
        bias = torch.full_like(message.weights.dense["1.bias"], torch.nan)
        spoilt = replace(message, weights=message.weights.with_dense({"1.bias": bias}))
        return wire.encode(spoilt, known={self._topology.digest})

    def _stale(self, blob: bytes) -> bytes:
        other = _moved(self._decoded(blob))
        assert other.weights is not None
        return wire.encode(other, known={other.weights.topology.digest})

    _uploads: Mapping[str, Callable[["FaultyEngine", bytes], bytes]] = {
        "upload of other masks": _stale,
        "not a number": _not_a_number,
        "truncated": lambda _, blob: blob[:-7],
        "empty": lambda _, blob: blob[:0],
        "random": lambda _, blob: Random(len(blob)).randbytes(300),
    }

    def save(self, folder: Path) -> None:
        self._inner.save(folder)

    def restore(self, folder: Path) -> None:
        self._inner.restore(folder)

    def close(self) -> None:
        self._inner.close()


def _moved(message: Payload) -> Payload:
    """The same weights on masks of one position less."""
    assert message.weights is not None
    weights: Weights = message.weights
    masks = weights.topology.masks()
    name = next(iter(masks))
    mask = masks[name].flatten()
    mask[int(mask.nonzero()[0])] = False
    return replace(message, weights=weights.moved_to(Topology.from_masks({**masks, name: mask.view_as(masks[name])})))
