"""What is fuzzed: for each target whole inputs, how one is damaged, and what then reads it."""

import gzip
import io
import json
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedsparse import wire
from fedsparse.data.batches import read_batch
from fedsparse.data.idx import read_idx
from fedsparse.data.npz import read_npz
from fedsparse.data.parquet import read_parquet
from fedsparse.data.texts import TEXTS
from fedsparse.errors import FedsparseError, WireError
from fedsparse.experiment import load_config
from fedsparse.federated.checkpoint import Checkpoints
from fedsparse.federated.engines.base import unanswered
from fedsparse.federated.engines.inline import InlineEngine
from fedsparse.federated.ledger import Ledger
from fedsparse.federated.server import FederatedServer
from fedsparse.methods.base import methods
from tests.federated.small_run import SpyEngine, go, small_method, small_plan
from tests.fuzz.mutate import choice, damaged, encoded, reworded, sealed_damage, twisted

__all__ = ["TARGETS", "Target"]

ROOT = Path(__file__).parents[2]
LONGEST_MESSAGE = 20_000  # bytes; longer ones take time and show nothing new
MOST_BYTES = 1 << 20  # that positions may take: the small network needs less

Damage = Callable[[bytes, np.random.Generator, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """Attributes: whole inputs; what damages one with pieces of another; what reads the outcome."""

    corpus: Sequence[bytes]
    damage: Damage
    run: Callable[[bytes], object]

    def mutant(self, rng: np.random.Generator) -> bytes:
        return self.damage(choice(rng, self.corpus), rng, choice(rng, self.corpus))


# ---- messages
def _recorded(name: str, rounds: int):
    plan = small_plan(small_method(name, adjust_every=1), rounds=rounds, sizes=(12, 9, 14), per_round=3)
    spy = SpyEngine(plan)
    go(plan, spy)
    return plan, spy.exchanges


def _messages() -> tuple[list[bytes], dict]:
    """Downloads and uploads of every method, and the topologies that they refer to."""
    blobs: list[bytes] = []
    held = {}
    for name in methods():
        _, exchanges = _recorded(name, 4)
        for request, reply in (exchange[0] for exchange in exchanges):
            for blob in (request.blob, reply.blob):
                if blob is not None and len(blob) <= LONGEST_MESSAGE:
                    blobs.append(blob)
                    message = _opened(blob, held)
                    if message is not None and message.weights is not None:
                        held[message.weights.topology.digest] = message.weights.topology
    return blobs, held


def _opened(blob: bytes, held):
    try:
        return wire.decode(blob, topologies=held)
    except WireError:
        return None


def _wire() -> Target:
    blobs, held = _messages()
    messages = {blob: _opened(blob, held) for blob in blobs}
    blobs = [blob for blob, message in messages.items() if message is not None]

    def damage(blob: bytes, rng, other: bytes) -> bytes:
        """One in five is said otherwise first, so that its topology still has the digest it says."""
        changed = encoded(twisted(messages[blob], rng), ()) if rng.random() < 0.2 else None
        return sealed_damage(changed or blob, rng, other)

    return Target(blobs, damage, partial(wire.decode, topologies=held, most_bytes=MOST_BYTES))


# ---- uploads, in rounds of every method
class Replay:
    """Answers as recorded, but for one."""

    def __init__(self, exchanges, number: int, client: int, blob: bytes) -> None:
        self._exchanges, self._number, self._client, self._blob = exchanges, number, client, blob
        self._count = 0

    def exchange(self, requests):
        number, self._count = self._count, self._count + 1
        recorded = {r.client_id: reply for r, reply in self._exchanges[number]} if number < len(self._exchanges) else {}
        replies = []
        for request in requests:
            reply = recorded.get(request.client_id) or unanswered(request, "not recorded")
            if (number, request.client_id) == (self._number, self._client):
                reply = type(reply)(request.client_id, self._blob, "", reply.seconds, reply.peak_bytes)
            replies.append(reply)
        return replies


def _uploads() -> Target:
    """Inputs are JSON of method, exchange and client, a zero, and the upload."""
    runs = {name: _recorded(name, 2) for name in methods()}
    held: dict = {}
    corpus = []
    for name, (_, exchanges) in runs.items():
        for number, pairs in enumerate(exchanges):
            for request, reply in pairs:
                message = _opened(request.blob, held)
                if message is not None and message.weights is not None:
                    held[message.weights.topology.digest] = message.weights.topology
                head = json.dumps([name, number, request.client_id]).encode()
                corpus.append(head + b"\0" + reply.blob)

    def damage(case: bytes, rng, other: bytes) -> bytes:
        head, _, blob = case.partition(b"\0")
        lent = other.partition(b"\0")[2]
        message = _opened(blob, held) if rng.random() < 0.8 else None
        if message is not None:
            known = {message.weights.topology.digest} if message.weights is not None else set()
            changed = encoded(twisted(message, rng), known)
            if changed is not None:
                return head + b"\0" + changed
        return head + b"\0" + sealed_damage(blob, rng, lent)

    def run(case: bytes) -> None:
        head, _, blob = case.partition(b"\0")
        name, number, client = json.loads(head)
        plan, exchanges = runs[name]
        go(plan, Replay(exchanges, number, client, blob))

    return Target(corpus, damage, run)


# ---- configurations
def _config() -> Target:
    files = [*(ROOT / "recipes").rglob("*.toml")]
    corpus = [file.read_bytes() for file in files if b"base =" not in file.read_bytes()]

    def damage(text: bytes, rng, other: bytes) -> bytes:
        return reworded(text.decode(), rng, other.decode()).encode()

    return Target(corpus, damage, lambda text: load_config(text.decode()))


# ---- data files
def _in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def run(blob: bytes) -> None:
        (folder / name).write_bytes(blob)
        read(folder / name)

    return run


def _idx() -> Target:
    x, y = np.arange(3 * 4 * 5, dtype=np.uint8), np.arange(7, dtype=np.uint8)
    plain = [
        b"\0\0\x08\x03" + struct.pack(">3I", 3, 4, 5) + x.tobytes(),
        b"\0\0\x08\x01" + struct.pack(">I", 7) + y.tobytes(),
    ]
    return Target(
        plain, damaged, _in_a_file("a", lambda file: read_idx(file, 3 if file.read_bytes()[3:4] == b"\3" else 1))
    )


def _idx_gz() -> Target:
    plain = _idx().corpus
    bomb = gzip.compress(bytes(1 << 28))  # a second member of the file

    def damage(blob: bytes, rng, other: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return damaged(blob, rng, other)
        if kind < 0.5:
            return blob + bomb
        inner = gzip.decompress(blob)
        return gzip.compress(damaged(inner, rng, inner), 1)

    return Target([gzip.compress(plain[0])], damage, _in_a_file("a.gz", lambda file: read_idx(file, 3)))


def _npz() -> Target:
    corpus = []
    for kind in (np.savez, np.savez_compressed):
        for arrays in (
            {"x": np.arange(72, dtype=np.uint8).reshape(9, 8), "y": np.arange(9) % 3},
            {"x": np.zeros((6, 2)), "y": np.arange(6) % 2, "x_test": np.ones((1, 2)), "y_test": np.zeros(1, np.int8)},
        ):
            stream = io.BytesIO()
            kind(stream, **arrays)
            corpus.append(stream.getvalue())
    return Target(corpus, damaged, _in_a_file("a.npz", lambda file: read_npz(file, np.random.default_rng(0))))


def _parquet() -> Target:
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    corpus = []
    rng = np.random.default_rng(0)
    for encoding in ("PNG", "JPEG", "GIF"):
        rows = []
        for _ in range(3):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(stream, encoding)
            rows.append({"bytes": stream.getvalue(), "path": None})
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        stream = io.BytesIO()
        parquet.write_table(pyarrow.table({"img": pyarrow.array(rows, kind), "label": [1, 0, 2]}), stream)
        corpus.append(stream.getvalue())
    return Target(corpus, damaged, _in_a_file("a.parquet", lambda file: read_parquet(file, ("label",), 4)))


def _cifar() -> Target:
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    batch = {b"data": data, b"labels": [1, 2], b"filenames": [b"a", b"b"]}
    corpus = [pickle.dumps(batch, protocol) for protocol in range(5)]
    return Target(corpus, damaged, _in_a_file("a", lambda file: read_batch(file, "labels")))


def _texts() -> Target:
    roles = [{"role": "A", "speeches": ["To be,", "or not"]}, {"role": "B", "speeches": []}]
    corpus = [
        "\n".join(map(json.dumps, roles)).encode() + b"\n",
        b" \n = A = \n \n words \n = = B = = \n more = 1\n",
        "A tale.\n\nOf \u00e9.\nAnother.\n".encode(),
    ]
    names = ("roles.jsonl", "test.txt", "valid.txt", "input.txt", "tiny_stories_excerpt.txt")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def run(blob: bytes) -> None:
        for name in names:
            (folder / name).write_bytes(blob)
        for read in TEXTS.values():
            with suppress(FedsparseError):
                read(folder, np.random.default_rng(0))

    return Target(corpus, damaged, run)


# ---- checkpoints
def _checkpoint() -> Target:
    """Inputs are the name of a file of a checkpoint, a zero, and its content."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    plan = small_plan(small_method("remembering"), rounds=1, per_round=6)
    whole, work = home / "whole", home / "work"
    whole.mkdir()
    go(plan, folder=whole)
    shutil.copytree(whole, work)
    files = [*(whole / "checkpoints").rglob("*.fsp"), *(whole / "checkpoints").rglob("*.memory")][:4]
    files += [*(whole / "checkpoints").rglob("*.topology")][:1]
    corpus = [str(file.relative_to(whole)).encode() + b"\0" + file.read_bytes() for file in files]
    engine = InlineEngine(plan)
    server = FederatedServer(plan, engine, Ledger(work))

    def damage(case: bytes, rng, other: bytes) -> bytes:
        name, _, blob = case.partition(b"\0")
        message = _opened(blob, {}) if rng.random() < 0.5 else None
        changed = None if message is None else encoded(twisted(message, rng), ())
        return name + b"\0" + (changed or sealed_damage(blob, rng, other.partition(b"\0")[2]))

    def run(case: bytes) -> None:
        name, _, blob = case.partition(b"\0")
        path = work / name.decode()
        path.unlink(missing_ok=True)
        path.write_bytes(blob)
        try:
            state = Checkpoints(work / "checkpoints").newest()
            server.restore(state)
            engine.restore(Checkpoints(work / "checkpoints").clients(1))
        finally:
            shutil.copyfile(whole / name.decode(), path)
            for name in ("metrics.jsonl", "clients.jsonl", "layers.jsonl"):
                shutil.copyfile(whole / name, work / name)

    return Target(corpus, damage, run)


# ---- Flower
def _flower() -> Target:
    from tests.fuzz.flower import target

    return Target(*target())


TARGETS: dict[str, Callable[[], Target]] = {
    "checkpoint": _checkpoint,
    "cifar": _cifar,
    "config": _config,
    "flower": _flower,
    "idx": _idx,
    "idx_gz": _idx_gz,
    "npz": _npz,
    "parquet": _parquet,
    "texts": _texts,
    "uploads": _uploads,
    "wire": _wire,
}
