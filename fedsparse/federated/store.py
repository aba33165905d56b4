"""What clients keep between exchanges, on disk: the topology each holds and its private memory.

A process has in memory what it works on, however many clients there are. Files are messages of the wire format, and
never change: a new state is a new file in place of the old one, so a checkpoint is a folder of links to them.
"""

import os
import re
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedsparse import wire
from fedsparse.errors import CheckpointError, WireError
from fedsparse.federated.checkpoint import by_client, unwritable
from fedsparse.pattern import Topology
from fedsparse.wire import Payload

__all__ = ["ClientStore", "Kept", "Topologies", "TopologyFiles"]

_CACHED = 4
_INDEX = "index.fsp"
_DIGEST = re.compile(r"[0-9a-f]{32}")  # and nothing that leads out of a folder
_MEMORY, _TOPOLOGY = ".memory", ".topology"


@dataclass(frozen=True)
class Kept:
    """What one client keeps from one exchange to the next.

    Attributes:
        held: digest of the topology it was last sent; empty before the first.
        memory: its private memory, encoded; empty while there is none.
    """

    held: str = ""
    memory: bytes = b""


class Topologies(Protocol):
    """Topologies by digest, wherever they are."""

    def add(self, topology: Topology) -> None:
        """Keeps a topology, unless it is there."""
        ...

    def get(self, digest: str) -> Topology:
        """The topology of a digest; WireError when it was not kept."""
        ...


class TopologyFiles:
    """Topologies by digest in one folder that all processes of a run share.

    A file's name follows from its content, so any process may write it at any time, and be killed while it does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recent: OrderedDict[str, Topology] = OrderedDict()

    def add(self, topology: Topology) -> None:
        """Keeps a topology, unless it is there.

        Raises:
            CheckpointError: it cannot be written.
        """
        digest = topology.digest
        if not self._path(digest).exists():
            _write(self._path(digest), wire.encode(Payload("topology", 0, extras={"topology": topology})))
        self._remember(digest, topology)

    def get(self, digest: str) -> Topology:
        """The topology of a digest.

        Raises:
            WireError: it was not kept, or its file is damaged.
        """
        found = self._recent.get(digest)
        if found is None:
            try:
                blob = self._path(digest).read_bytes()
            except OSError as error:
                raise WireError(f"topology {digest} is not in {self._folder}: {error}") from error
            content = wire.decode(blob).extras.get("topology")
            if not isinstance(content, Topology) or content.digest != digest:
                raise WireError(f"{self._path(digest)} holds something else than the topology that it is named after")
            found = content
        self._remember(digest, found)
        return found

    def tidy(self, used: set[str]) -> None:
        """Removes the files of all but the `used` digests."""
        for path in self._folder.glob(f"*{_TOPOLOGY}"):
            if path.stem not in used:
                path.unlink()

    def _remember(self, digest: str, topology: Topology) -> None:
        self._recent[digest] = topology
        self._recent.move_to_end(digest)
        while len(self._recent) > _CACHED:
            self._recent.popitem(last=False)

    def _path(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise WireError(f"{digest[:100]!r} is no digest of a topology: expected 32 hexadecimal digits")
        return self._folder / f"{digest}{_TOPOLOGY}"


class ClientStore:
    """States of all clients, by client id. One process writes them; workers are handed what they need.

    Args:
        folder: where they are while the engine works, emptied now and removed at the end; a temporary folder if None.

    Attributes:
        folder: the same.
        topologies: those that some client holds.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.folder = Path(tempfile.mkdtemp(prefix="fedsparse-")) if folder is None else folder
        self.topologies = TopologyFiles(self.folder)
        self._held: dict[int, str] = {}
        self._remembering: set[int] = set()
        self._synced: set[str] = set()
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def clients(self) -> list[int]:
        """Ids of the clients that keep something."""
        return sorted(self._held.keys() | self._remembering)

    def kept(self, client_id: int) -> Kept:
        """What a client keeps."""
        known = client_id in self._remembering
        return Kept(self._held.get(client_id, ""), self._path(client_id).read_bytes() if known else b"")

    def commit(self, client_id: int, kept: Kept) -> None:
        """What a client keeps from now on.

        Raises:
            CheckpointError: it cannot be written.
        """
        if kept.held:
            self._held[client_id] = kept.held
        before = self.kept(client_id).memory
        if kept.memory == before:
            return
        path = self._path(client_id)
        self._synced.discard(path.name)
        if kept.memory:
            _write(path, kept.memory)
            self._remembering.add(client_id)
        else:
            self._remembering.discard(client_id)
            path.unlink()

    def tidy(self) -> None:
        """Removes topologies that no client holds any more; only while no client is at work."""
        self.topologies.tidy(set(self._held.values()))

    def save(self, folder: Path) -> None:
        """Links the state of all clients into a new folder, on disk in full when this returns."""
        self.tidy()
        folder.mkdir(parents=True)
        for name in sorted(self._names()):
            if name not in self._synced:
                _sync(self.folder / name)
                self._synced.add(name)
            _link(self.folder / name, folder / name)
        self._synced &= self._names()
        held = {str(client): digest for client, digest in self._held.items()}
        remembering = {str(client): True for client in sorted(self._remembering)}
        index = Payload("clients", 0, extras={"held": held, "remembering": remembering})
        _write(folder / _INDEX, wire.encode(index))
        _sync(folder / _INDEX)
        _sync(folder)

    def restore(self, folder: Path) -> None:
        """Returns to what `save` wrote.

        Raises:
            CheckpointError: a file is missing, or the index is none.
            WireError: the index is damaged.
        """
        try:
            index: Mapping[str, Any] = wire.decode((folder / _INDEX).read_bytes()).extras
            held, remembering = by_client(index.get("held"), str), by_client(index.get("remembering"), bool)
            if not all(_DIGEST.fullmatch(digest) for digest in held.values()):
                raise CheckpointError(f"{folder / _INDEX} names topologies by something else than digests")
            self._forget()
            self._held, self._remembering = held, set(remembering)
            for name in self._names():
                _link(folder / name, self.folder / name)
        except OSError as error:
            raise CheckpointError(
                f"the clients' part of a checkpoint is not complete: {error}; put the file back, or remove the "
                f"checkpoint of the same round to go on from the one before"
            ) from error
        self._synced = self._names()

    def close(self) -> None:
        """Removes the folder."""
        self._remove()

    def _forget(self) -> None:
        for pattern in (f"*{_MEMORY}", f"*{_TOPOLOGY}"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _names(self) -> set[str]:
        """Files of the present state."""
        topologies = {f"{digest}{_TOPOLOGY}" for digest in self._held.values()}
        return topologies | {self._path(client).name for client in self._remembering}

    def _path(self, client_id: int) -> Path:
        return self.folder / f"{client_id}{_MEMORY}"


def _write(path: Path, content: bytes) -> None:
    """A new file in place of an old one, whose links keep the old content."""
    draft = ""
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".draft")
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except OSError as error:
        if draft:
            Path(draft).unlink(missing_ok=True)
        raise unwritable(path, error) from error


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no links, or is another one."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        _sync(target)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
