"""A worker process: serves one client after another until its pipe closes."""

import os
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import parent_process
from pathlib import Path

import torch

from fedsparse.allocator import keep_freed_memory
from fedsparse.errors import CheckpointError
from fedsparse.federated.client import ClientHost
from fedsparse.federated.engines.handover import read_plan
from fedsparse.federated.store import TopologyFiles

__all__ = ["Raised", "Ready", "Seat", "serve_clients"]


@dataclass(frozen=True)
class Seat:
    """What a worker is started with.

    Attributes:
        folder: of the plan and the topologies.
        device: where its clients compute.
        threads: that torch and the kernels compute with.
    """

    folder: Path
    device: str
    threads: int


@dataclass(frozen=True)
class Ready:
    """The worker has its network."""


@dataclass(frozen=True)
class Raised:
    """The worker met an error that is not a client's failure, and ends.

    Attributes:
        text: class and message of the error.
        unwritable: message of a file that cannot be written, which another worker could not write either.
    """

    text: str
    unwritable: str = ""


def serve_clients(seat: Seat, pipe: Connection) -> None:
    """Answers every (Request, Kept) with (Reply, Kept)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        keep_freed_memory()
        torch.set_num_threads(seat.threads)
        host = ClientHost(replace(read_plan(seat.folder), device=seat.device), TopologyFiles(seat.folder))
        pipe.send(Ready())
        while True:
            try:
                request, kept = pipe.recv()
            except EOFError:
                return
            pipe.send(host.serve(request, kept))
    except Exception as error:
        # Whatever the state of this process is now, it will not be trusted with another client.
        unwritable = str(error) if isinstance(error, CheckpointError) else ""
        pipe.send(Raised(f"{type(error).__name__}: {error}", unwritable))
        raise


def _end_with_parent() -> None:
    """Ends the process in the middle of a client when the one that asks for it is gone."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
