"""What the clients of a round answered, on disk: the server's memory is that of a model, however many they are.

An upload that has been judged is put away as it came, and its update decodes it whenever a method looks. The last few
are held decoded, so that small cohorts are decoded once.
"""

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedsparse import wire
from fedsparse.errors import CheckpointError, WireError
from fedsparse.federated.checkpoint import unwritable
from fedsparse.federated.store import TopologyFiles
from fedsparse.methods.roles import Extras, Update
from fedsparse.pattern import Topology, Weights

__all__ = ["StoredUpdate", "Uploads"]


class StoredUpdate(Update):
    """An update whose weights and extras are decoded when they are looked at.

    Args:
        client_id, num_samples: as of every update.
        opened: gives the update with its content.
    """

    def __init__(self, client_id: int, num_samples: int, opened: Callable[[], Update]) -> None:
        # What is frozen is set like this, as a frozen dataclass itself does.
        for name, value in (("client_id", client_id), ("num_samples", num_samples), ("_opened", opened)):
            object.__setattr__(self, name, value)

    @property
    def weights(self) -> Weights | None:
        update: Update = self._opened()  # type: ignore[attr-defined]
        return update.weights

    @property
    def extras(self) -> Extras:
        update: Update = self._opened()  # type: ignore[attr-defined]
        return update.extras


class Uploads:
    """Uploads of the current round in one folder, which is there from the first of them to the end of the round.

    Args:
        folder: where, emptied now; a temporary folder if None.
        recent: how many are held decoded.
        most_bytes: bound of `wire.decode` for one.
    """

    def __init__(self, folder: Path | None, *, recent: int, most_bytes: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fedsparse-")) if folder is None else folder
        self._most_bytes = most_bytes
        self._held = recent
        self._recent: OrderedDict[Path, Update] = OrderedDict()
        self._count = 0
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.clear()  # a run that was killed has left its uploads

    def put(self, update: Update, blob: bytes, sent: Topology | None) -> Update:
        """Puts a judged update away.

        Args:
            update: its content.
            blob: the same, encoded.
            sent: the topology that the client was sent, to which the upload may refer.

        Returns:
            The update to hand to others.

        Raises:
            CheckpointError: it cannot be written.
        """
        path = self._folder / f"{self._count}.upload"
        self._count += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(blob)
        except OSError as error:
            raise unwritable(path, error) from error
        if sent is not None:
            self._topologies.add(sent)
        self._remember(path, update)
        samples, digest = update.num_samples, None if sent is None else sent.digest
        return StoredUpdate(update.client_id, samples, partial(self._opened, path, update.client_id, samples, digest))

    def clear(self) -> None:
        """Removes all uploads: nobody looks at them after their round."""
        self._recent.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._topologies = TopologyFiles(self._folder)

    def close(self) -> None:
        """Removes the folder."""
        self._recent.clear()
        self._remove()

    def _opened(self, path: Path, client_id: int, num_samples: int, sent: str | None) -> Update:
        found = self._recent.get(path)
        if found is None:
            try:
                topologies = {} if sent is None else {sent: self._topologies.get(sent)}
                message = wire.decode(path.read_bytes(), topologies=topologies, most_bytes=self._most_bytes)
            except (OSError, WireError) as error:
                raise CheckpointError(
                    f"the upload {path} cannot be read back: {error}; it is there until its round ends. If something "
                    "else removed it, go on from the last checkpoint with fedsparse resume"
                ) from error
            found = Update(client_id, num_samples, message.weights, message.extras)
        self._remember(path, found)
        return found

    def _remember(self, path: Path, update: Update) -> None:
        self._recent[path] = update
        self._recent.move_to_end(path)
        while len(self._recent) > self._held:
            self._recent.popitem(last=False)
