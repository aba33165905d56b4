"""Clients on Flower's nodes: the same bytes as in every engine, one packed array in each message.

Clients are dealt to nodes by `client_id % num-partitions`. What they keep stays on their node and travels for
checkpoints alone, so that a run may be resumed by any engine. Those bytes are no payload and are not counted, just as
the other engines' files are not.

In the words of the table in `engines.base`: a node that answers with an error, or not at all, is asked once more with
the same message, then the client has failed; an answer that comes later than that is not fetched any more. In a
deployment each message has a process of its own, so one that is killed costs its client alone the time-out. Flower's
simulation does not replace a process that died: what it would have served fails until the run is resumed.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedsparse.errors import ClientError, FedsparseError, WireError
from fedsparse.federated.engines.base import Reply, Request, unanswered
from fedsparse.federated.store import ClientStore, Kept
from fedsparse.flower.answers import Keeps, Served, Share, plain
from fedsparse.flower.kept import pack_kept, token, unpack_kept
from fedsparse.flower.messages import Scalar, content, notes_of, packed_bytes
from fedsparse.wire import MOST_BYTES

__all__ = ["EXCHANGE", "HAND_OVER", "HELLO", "TAKE_BACK", "FlowerEngine"]

EXCHANGE, HELLO, HAND_OVER, TAKE_BACK = "train.exchange", "query.hello", "query.hand_over", "query.take_back"
_ATTEMPTS = 2
_PAUSES = (0.02, 1.0)  # seconds between two looks for replies: the first, and the longest


class FlowerEngine:
    """Serves the rounds over Flower's grid.

    Args:
        grid: of the ServerApp that the rounds run in.
        nodes: how many must be there before the first exchange.
        timeout_s: seconds without any answer after which the clients still asked are given up.
        most_bytes: that positions in one client's memory may take; see `wire.decode`.
        folder: where the clients' states are while a checkpoint is written; a temporary folder if None.
        sleep, clock: of the waiting.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        nodes: int,
        timeout_s: float,
        most_bytes: int = MOST_BYTES,
        folder: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid, self._nodes, self._timeout_s = grid, nodes, timeout_s
        self._most_bytes = most_bytes
        self._sleep, self._clock = sleep, clock
        self._store = ClientStore(folder)
        self._node_of: dict[int, int] = {}  # by partition
        self._partitions = 1
        self._silent: dict[int, str] = {}  # nodes that have not said which partition they are, and why
        self._keeps: dict[int, Keeps] = {}
        self._stored: dict[int, str] = {}

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """Sends all requests at once; the replies come back in their order.

        Raises:
            ClientError: no node can serve a client.
        """
        self._meet_nodes()
        served: dict[int, Reply] = {}
        reasons: dict[int, list[str]] = {request.client_id: [] for request in requests}
        for _ in range(_ATTEMPTS):
            left = [request for request in requests if request.client_id not in served]
            for request, answer in zip(left, self._ask([self._letter(r) for r in left]), strict=True):
                told = reasons[request.client_id]
                try:
                    served[request.client_id] = replace(self._opened(request, answer), retries=len(told))
                except FedsparseError as error:
                    told.append(str(error))
        return [
            served.get(r.client_id)
            or unanswered(r, "; retried: ".join(reasons[r.client_id]), retries=len(reasons[r.client_id]) - 1)
            for r in requests
        ]

    def save(self, folder: Path) -> None:
        """A client whose node does not answer now goes into the checkpoint as it was in the one before."""
        changed = {c: keeps for c, keeps in self._keeps.items() if self._stored.get(c) != keeps.token}
        asked = _needed(changed, self._has)
        letters = [self._note(HAND_OVER, c, {"token": changed[c].token}) for c in asked]
        handed: dict[int, Kept] = {}
        for client_id, answer in zip(asked, self._ask(letters), strict=True):
            with suppress(FedsparseError):
                blob = packed_bytes(answer.opened())
                kept, topology = unpack_kept(blob, most_bytes=self._most_bytes)
                if token(kept) != changed[client_id].token:
                    continue  # not what the client kept when it answered
                handed[client_id] = kept
                if topology is not None:
                    self._store.topologies.add(topology)
        for client_id, keeps in changed.items():
            found = handed.get(client_id)
            if found is None and not keeps.remembers and self._has(keeps.held):
                found = Kept(keeps.held)
            if found is not None:
                self._store.commit(client_id, found)
                self._stored[client_id] = keeps.token
        self._store.save(folder)

    def restore(self, folder: Path) -> None:
        """A client whose node does not answer now fails the first time it is asked again, and then starts afresh."""
        self._store.restore(folder)
        self._meet_nodes()
        letters = []
        for client_id in self._store.clients:
            kept = self._store.kept(client_id)
            topology = self._store.topologies.get(kept.held) if kept.held else None
            self._keeps[client_id] = Keeps(token(kept), kept.held, bool(kept.memory))
            self._stored[client_id] = token(kept)
            letters.append(self._note(TAKE_BACK, client_id, {}, pack_kept(kept, topology)))
        self._ask(letters)

    def close(self) -> None:
        self._store.close()

    # ---- one exchange
    def _letter(self, request: Request) -> "_Letter":
        keeps = self._keeps.get(request.client_id)
        notes: dict[str, Scalar] = {"token": "" if keeps is None else keeps.token, "weights-back": request.weights_back}
        return self._note(EXCHANGE, request.client_id, notes, request.blob)

    def _note(self, kind: str, client_id: int, notes: dict[str, Scalar], blob: bytes | None = None) -> "_Letter":
        """A message about a client to the node that serves it."""
        return _Letter(kind, client_id % self._partitions, {"client": client_id, **notes}, blob)

    def _opened(self, request: Request, answer: "_Answer") -> Reply:
        """A client's reply; a FedsparseError says why it has to be asked again."""
        message = answer.opened()
        said = Served.read(notes_of(message))
        blob = None if said.reason else packed_bytes(message)
        self._keeps[request.client_id] = said.keeps
        return Reply(request.client_id, blob, said.reason, said.seconds, said.peak)

    def _has(self, digest: str) -> bool:
        """Whether the topology of a digest is in the store; there is none to have without a digest."""
        try:
            if digest:
                self._store.topologies.get(digest)
        except WireError:
            return False
        return True

    # ---- nodes
    def _meet_nodes(self) -> None:
        """Waits for enough nodes, and learns from those that are new which clients they serve."""
        present = self._present_nodes()
        self._node_of = {partition: node for partition, node in self._node_of.items() if node in present}
        new = sorted(present - set(self._node_of.values()))
        if not new:
            return
        self._silent, shares = {}, {}
        for node, answer in zip(new, self._post([(node, _Letter(HELLO, 0, {}, None)) for node in new]), strict=True):
            try:
                shares[node] = Share.read(notes_of(answer.opened()))
            except FedsparseError as error:
                self._silent[node] = str(error)
        if not self._node_of and shares:
            ((self._partitions, _),) = Counter(share.partitions for share in shares.values()).most_common(1)
        for node, share in shares.items():
            self._seat(node, share)
        if not self._node_of:
            raise ClientError(f"none of {len(new)} Flower nodes can serve clients: {self._silent[new[0]]}")

    def _seat(self, node: int, share: Share) -> None:
        """Gives a node its clients, unless another has them: who was there first is not pushed aside."""
        if share.partitions != self._partitions:
            self._silent[node] = (
                f"it was started as one of {share.partitions} partitions, the others as one of {self._partitions}; "
                "start it again with their num-partitions"
            )
        elif share.partition in self._node_of:
            self._silent[node] = (
                f"it was started as partition {share.partition}, which another node serves; "
                "give each node a partition-id of its own"
            )
        else:
            self._node_of[share.partition] = node

    def _present_nodes(self) -> set[int]:
        deadline, pause = self._clock() + self._timeout_s, _PAUSES[0]
        while len(present := set(self._grid.get_node_ids())) < max(1, self._nodes) and not self._node_of:
            if self._clock() >= deadline:
                raise ClientError(
                    f"{len(present)} of {self._nodes} Flower nodes are there after {self._timeout_s:g} s; start the "
                    "others, or ask for fewer with --run-config nodes=N"
                )
            self._sleep(pause)
            pause = min(2 * pause, _PAUSES[1])
        return present

    # ---- letters
    def _ask(self, letters: "Sequence[_Letter]") -> "list[_Answer]":
        """The answer to each letter, or why there is none."""
        known = [letter for letter in letters if letter.partition in self._node_of]
        answers = iter(self._post([(self._node_of[letter.partition], letter) for letter in known]))
        return [
            next(answers) if letter.partition in self._node_of else _Answer(None, self._unserved(letter.partition))
            for letter in letters
        ]

    def _unserved(self, partition: int) -> str:
        reasons = "".join(f"; a node that is there says: {reason}" for reason in self._silent.values())
        return f"no Flower node serves partition {partition} of {self._partitions}{reasons}"

    def _post(self, addressed: "Sequence[tuple[int, _Letter]]") -> "list[_Answer]":
        """The answers to letters to nodes.

        A node has one letter at a time: it may serve two at once, and one would undo what the other wrote down.
        """
        mail = _Mail(self._grid, addressed, ttl=self._timeout_s * (1 + len(addressed)))
        deadline, pause = self._clock() + self._timeout_s, _PAUSES[0]
        mail.send()
        while mail.under_way:
            if not mail.fetch():
                if self._clock() < deadline:
                    self._sleep(pause)
                    pause = min(2 * pause, _PAUSES[1])
                    continue
                mail.give_up(f"no answer within {self._timeout_s:g} s")
            mail.send()
            deadline, pause = self._clock() + self._timeout_s, _PAUSES[0]
        return [mail.answers[number] for number in range(len(addressed))]


@dataclass(frozen=True, eq=False)
class _Letter:
    """A message to be sent to the node of a partition."""

    kind: str
    partition: int
    notes: dict[str, Scalar]
    blob: bytes | None

    def message(self, node: int, ttl: float) -> Message:
        return Message(content(self.blob, self.notes), dst_node_id=node, message_type=self.kind, ttl=ttl)


@dataclass(frozen=True, eq=False)
class _Answer:
    """A message that came back, or the reason why there is none."""

    message: Message | None
    reason: str = ""

    def opened(self) -> Message:
        """The message; ClientError with the reason where there is none."""
        if self.message is None:
            raise ClientError(self.reason)
        return self.message


class _Mail:
    """Letters to nodes and what came back.

    Attributes:
        answers: by the letter's number.
        under_way: numbers of the letters that have no reply yet, by the message's id.
    """

    def __init__(self, grid: Grid, addressed: Sequence[tuple[int, _Letter]], *, ttl: float) -> None:
        self._grid, self._addressed, self._ttl = grid, addressed, ttl
        self._lines: dict[int, list[int]] = {}  # of each node, the last letter in front
        for number in reversed(range(len(addressed))):
            self._lines.setdefault(addressed[number][0], []).append(number)
        self._due = [line.pop() for line in self._lines.values()]
        self.answers: dict[int, _Answer] = {}
        self.under_way: dict[str, int] = {}

    def send(self) -> None:
        """Sends each idle node its next letter; one that Flower does not take is answered by that."""
        while self._due:
            due, self._due = self._due, []
            messages = [letter.message(node, self._ttl) for node, letter in (self._addressed[n] for n in due)]
            taken = set(self._grid.push_messages(messages))
            for number, message in zip(due, messages, strict=True):
                if message.metadata.message_id in taken:
                    self.under_way[message.metadata.message_id] = number
                else:
                    self._settle(
                        number, _Answer(None, "Flower did not take the message: the node is gone, or it is too large")
                    )

    def fetch(self) -> bool:
        """Takes the replies that are there; whether there were any."""
        found = False
        for reply in self._grid.pull_messages(list(self.under_way)):
            number = self.under_way.pop(reply.metadata.reply_to_message_id, None)
            if number is not None:
                found = True
                self._settle(number, _answer(reply))
        return found

    def give_up(self, reason: str) -> None:
        """Waits no longer for the letters that are under way."""
        waiting, self.under_way = self.under_way, {}
        for number in waiting.values():
            self._settle(number, _Answer(None, reason))

    def _settle(self, number: int, answer: _Answer) -> None:
        self.answers[number] = answer
        line = self._lines[self._addressed[number][0]]
        if line:
            self._due.append(line.pop())


def _answer(reply: Message) -> _Answer:
    if not reply.has_error():
        return _Answer(reply)
    reason = plain(reply.error.reason or "no reason given")
    return _Answer(None, f"the node reports error {reply.error.code}: {reason}")


def _needed(changed: dict[int, Keeps], has: Callable[[str], bool]) -> list[int]:
    """Clients to be asked what they keep: all with a memory, and one for each topology that is not here."""
    asked = [client_id for client_id, keeps in changed.items() if keeps.remembers]
    covered = {changed[client_id].held for client_id in asked}
    for client_id, keeps in changed.items():
        if keeps.held not in covered and not has(keeps.held):
            asked.append(client_id)
            covered.add(keeps.held)
    return asked
