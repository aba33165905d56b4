"""Checkpoints that are there in full or not at all.

A checkpoint is one message of the wire format: versioned, checksummed, exact to the bit, without pickle. Beside it lies
a folder of further messages, what the clients keep, which is complete before the checkpoint gets its name.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

from fedsparse import wire
from fedsparse.errors import CheckpointError, WireError
from fedsparse.wire import Payload

__all__ = ["Checkpoints", "by_client", "unwritable"]

_KEPT = 2
_Value = TypeVar("_Value")


class Checkpoints:
    """The newest checkpoints of a run in one folder; older ones are removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: Payload, write_clients: Callable[[Path], None]) -> None:
        """Writes a state under its round, surviving a crash at any moment.

        Args:
            state: the server's half.
            write_clients: called with the path of a new folder, which it makes and fills with the clients' half.

        Raises:
            CheckpointError: the folder cannot be written; the checkpoints before are still there.
        """
        target = self._folder / f"round-{state.round:06d}.fsp"
        partial = target.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.clients(state.round), ignore_errors=True)
            write_clients(self.clients(state.round))
            with partial.open("wb") as file:
                file.write(wire.encode(state))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            self._sync_folder()
            for old in self._files()[_KEPT:]:
                self._remove(old)
        except (OSError, CheckpointError) as error:
            if not target.exists():  # a full disk has room again for those who go on from the one before
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                shutil.rmtree(self.clients(state.round), ignore_errors=True)
            raise error if isinstance(error, CheckpointError) else unwritable(target, error) from error

    def clear(self) -> None:
        """Removes what an earlier run left, which would pass for newer than the first checkpoints of the next.

        Raises:
            CheckpointError: a file cannot be removed.
        """
        try:
            for file in (*self._files(), *self._folder.glob("*.partial")):
                self._remove(file)
            for folder in self._folder.glob("round-*.clients"):
                shutil.rmtree(folder)
        except OSError as error:
            raise CheckpointError(f"old checkpoints in {self._folder} cannot be removed: {error}") from error

    def newest(self) -> Payload | None:
        """The newest readable state; None where nothing has been saved.

        A damaged file is passed over with a warning.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        files = self._files()
        for file in files:
            try:
                state = wire.decode(file.read_bytes())
                for beside in file.with_suffix(".clients").iterdir():
                    wire.decode(beside.read_bytes())
                return state
            except (WireError, OSError) as error:
                warnings.warn(f"checkpoint {file} cannot be used ({error}); trying the one before", stacklevel=2)
        if files:
            raise CheckpointError(f"none of the checkpoints in {self._folder} can be read; start the run again")
        return None

    def clients(self, round: int) -> Path:
        """Folder of the clients' half of a state."""
        return self._folder / f"round-{round:06d}.clients"

    def _remove(self, file: Path) -> None:
        file.unlink()
        shutil.rmtree(file.with_suffix(".clients"), ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.fsp"), reverse=True)

    def _sync_folder(self) -> None:
        """Makes the renaming itself durable, where folders can be synced."""
        if os.name != "posix":
            return
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """What to say and do when a file of a run cannot be written, as on a full disk."""
    return CheckpointError(
        f"{path} cannot be written: {error}; make room there, then go on from the last checkpoint with fedsparse resume"
    )


def by_client(section: object, kind: type[_Value]) -> dict[int, _Value]:
    """What a checkpoint says of clients, by their ids.

    Raises:
        CheckpointError: it is not of that form.
    """
    entries = section if isinstance(section, Mapping) else {"": section}
    if not all(name.isdecimal() and name.isascii() and type(value) is kind for name, value in entries.items()):
        raise CheckpointError(
            f"the checkpoint holds something else than a {kind.__name__} for each client; it was not written by this "
            "version of fedsparse, or changed since"
        )
    return {int(name): cast(_Value, value) for name, value in entries.items()}
