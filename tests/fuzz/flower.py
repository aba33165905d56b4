"""What nodes may say and send: notes of any type beside a message, and the readers of both."""

import json
from contextlib import suppress

import torch

from fedsparse import wire
from fedsparse.errors import FedsparseError
from fedsparse.federated.store import Kept
from fedsparse.flower.answers import Served, Share
from fedsparse.flower.kept import pack_kept, unpack_kept
from fedsparse.flower.masked import pack_arrays, unpack_arrays
from fedsparse.pattern import Topology
from fedsparse.wire import Payload
from tests.fuzz.mutate import ODD_NUMBERS, choice, encoded, sealed_damage, twisted

SERVED = {
    "token": "a" * 24,
    "held": "b" * 32,
    "remembers": True,
    "reason": "",
    "seconds": 0.5,
    "seconds-source": "measured",
}
SHARE = {"partition": 1, "partitions": 3}
ODD = [None, True, 0, -1, 3, 2**63, "", "a", "A" * 32, "../x", "b" * 32, "\x1b[2J", [], [1], ["a" * 24], *ODD_NUMBERS]
MOST_BYTES = 1 << 20


def target():
    """Inputs are the notes as JSON, a zero, and a message."""
    topology = Topology.from_masks({"a.weight": torch.arange(20).view(4, 5) % 3 == 0})
    held = {topology.digest: topology}
    memory = wire.encode(Payload("memory", 0, extras={"loss": 0.5, "last": torch.ones(3)}))
    arrays = {"a.weight": torch.ones(4, 5).numpy(), "b": torch.zeros(2).numpy()}
    blobs = [
        pack_kept(Kept(topology.digest, memory), topology),
        pack_arrays(arrays, topology),
        pack_arrays(arrays, topology, known={topology.digest}),
    ]
    corpus = [json.dumps(notes).encode() + b"\0" + blob for notes in (SERVED, SHARE) for blob in blobs]

    def damage(case, rng, other):
        head, _, blob = case.partition(b"\0")
        notes = json.loads(head)
        name = choice(rng, [*notes, "peak", "peak-source"])
        notes[name] = choice(rng, ODD)
        message = None
        if rng.random() < 0.5:
            with suppress(FedsparseError):
                message = wire.decode(blob, topologies=held)
        changed = None if message is None else encoded(twisted(message, rng), held if rng.random() < 0.5 else ())
        return json.dumps(notes).encode() + b"\0" + (changed or sealed_damage(blob, rng, other.partition(b"\0")[2]))

    def run(case):
        head, _, blob = case.partition(b"\0")
        notes = json.loads(head)
        readers = (
            lambda: Served.read(notes),
            lambda: Share.read(notes),
            lambda: unpack_kept(blob, most_bytes=MOST_BYTES),
            lambda: unpack_arrays(blob, held),
        )
        refusals = 0
        for read in readers:
            try:
                read()
            except FedsparseError as error:
                refusals += 1
                last = error
        if refusals == len(readers):
            raise last

    return corpus, damage, run
