"""Every number of a run, in lines of JSON.

metrics.jsonl   one line a round
clients.jsonl   one line a client exchange
layers.jsonl    one line a round and pruned weight: round, layer, size, nnz, changed since the round before
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsparse.errors import CheckpointError
from fedsparse.federated.checkpoint import unwritable
from fedsparse.pattern import Topology

__all__ = ["Ledger"]

_FILES = ("metrics.jsonl", "clients.jsonl", "layers.jsonl")


class Ledger:
    """Appends records to the run folder, or keeps rounds in memory alone where there is none.

    Numbers are finite: JSON has no others, so whoever makes a record says in words what has none.

    A checkpoint stores the lengths of all files; `restore` cuts off what was written after it, so that a killed run
    goes on without a line lost or doubled.

    Attributes:
        rounds: records of all finished rounds.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.rounds: list[dict[str, Any]] = []

    def add_round(self, record: Mapping[str, Any]) -> None:
        """One finished round."""
        self.rounds.append(dict(record))
        self._append(_FILES[0], record)

    def add_client(self, record: Mapping[str, Any]) -> None:
        """One exchange with one client."""
        self._append(_FILES[1], record)

    def add_layers(self, round: int, topology: Topology, before: Topology) -> None:
        """The pruned weights of a round, and how many positions of each were kept by one of the topologies alone."""
        changes = topology.changes(before)
        for name, pattern in topology.items():
            line = {"round": round, "layer": name, "size": pattern.size, "nnz": pattern.nnz, "changed": changes[name]}
            self._append(_FILES[2], line)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self._folder is None:
            return
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise unwritable(self._folder / name, error) from error

    def lengths(self) -> dict[str, int]:
        """Bytes of all files, all of them on disk when this returns."""
        lengths = {}
        for name in _FILES if self._folder is not None else ():
            with (self._folder / name).open("a", encoding="utf-8") as file:  # type: ignore[operator]
                os.fsync(file.fileno())
                lengths[name] = file.tell()
        return lengths

    def restore(self, lengths: Mapping[str, int]) -> None:
        """Returns to the moment `lengths` was taken; with no lengths, to the beginning.

        Raises:
            CheckpointError: a file is shorter than it was then, or damaged.
        """
        if not all(type(length) is int and length >= 0 for length in lengths.values()):
            raise CheckpointError(f"the checkpoint gives {dict(lengths)} as lengths of the records; use another one")
        if self._folder is None:
            return
        for name in _FILES:
            wanted = lengths.get(name, 0)
            with (self._folder / name).open("a", encoding="utf-8") as file:
                if file.tell() < wanted:
                    raise CheckpointError(
                        f"{self._folder / name} has {file.tell()} bytes, the checkpoint was taken at {wanted}; "
                        "put the missing lines back, or start the run again"
                    )
                file.truncate(wanted)
        path = self._folder / _FILES[0]
        try:
            self.rounds = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged: {error}; put back its lines as they were, or start the run again"
            ) from error
