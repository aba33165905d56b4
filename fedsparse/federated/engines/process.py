"""Clients in worker processes on this host, with the same bits as `inline`.

A worker is spawned, not forked: it has its own network and a fixed number of threads. Any worker serves any client,
because what clients keep lies with this process alone, which takes it over only with an answer: a worker that is lost
changes nothing.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from fedsparse.errors import CheckpointError, ClientError
from fedsparse.federated.engines.base import Reply, Request, unanswered
from fedsparse.federated.engines.handover import write_plan
from fedsparse.federated.engines.worker import Raised, Ready, Seat, serve_clients
from fedsparse.federated.plan import Plan
from fedsparse.federated.store import ClientStore, Kept

__all__ = ["ProcessEngine"]

_ATTEMPTS = 2
_STARTS = 3  # of a worker in a row that may fail
_START_SECONDS = 300.0
_JOIN_SECONDS = 10.0
_CLOSED = "the engine was closed"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_spawn = multiprocessing.get_context("spawn")


class ProcessEngine:
    """Worker processes that share the clients of an exchange.

    Args:
        plan: the run. A method or model that cannot be pickled is refused.
        workers: how many processes. On the device `cuda`, GPUs are dealt to them in turn.
        timeout_s: seconds a worker may take for one client; then it is killed and replaced.
        folder: where the plan and the clients' states are meanwhile; a temporary folder if None.

    Raises:
        ConfigError: the plan cannot be handed to other processes.
    """

    def __init__(self, plan: Plan, *, workers: int, timeout_s: float, folder: Path | None = None) -> None:
        self._store = ClientStore(folder)
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        threads = torch.get_num_threads() if plan.threads is None else plan.threads
        try:
            write_plan(plan, self._store.folder)
            resource_tracker.ensure_running()  # before any start: it would undo the blocking of signals below
            devices = _devices(plan.device, workers)
            self._workers = [_Worker(Seat(self._store.folder, device, threads)) for device in devices]
        except BaseException:
            self._store.close()
            raise
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._couriers = ThreadPoolExecutor(workers, thread_name_prefix="fedsparse-courier")

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def exchange(self, requests: Sequence[Request]) -> list[Reply]:
        """One courier thread for each worker; replies come back in the order of the requests.

        Raises:
            ClientError: workers cannot be started.
            CheckpointError: what a client keeps cannot be written.
        """
        replies = list(self._couriers.map(self._served, requests))
        self._store.tidy()
        return replies

    def _served(self, request: Request) -> Reply:
        """The reply of a client; of a lost worker, its client is given to another one once."""
        reasons: list[str] = []
        while len(reasons) < _ATTEMPTS and not self._closed.is_set():
            worker = self._idle.get()
            try:
                reply, kept = worker.serve(request, self._store.kept(request.client_id), self._timeout_s)
            except _Lost as lost:
                reasons.append(str(lost))
                worker.start_anew()
                continue
            finally:
                self._idle.put(worker)
            self._store.commit(request.client_id, kept)
            return replace(reply, retries=len(reasons))
        reason = "; retried: ".join(reasons) or _CLOSED
        return unanswered(request, reason, retries=max(0, len(reasons) - 1))

    def save(self, folder: Path) -> None:
        self._store.save(folder)

    def restore(self, folder: Path) -> None:
        self._store.restore(folder)

    def close(self) -> None:
        """Kills the workers, whatever they are doing."""
        self._closed.set()
        for worker in self._workers:
            worker.dismiss()
        self._couriers.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._store.close()


class _Lost(Exception):
    """A worker is gone, or has to go; the message says why."""


class _Worker:
    """This side of one worker process, which may be replaced by another in the same seat."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._changing = threading.Lock()
        self._dismissed = False
        self._start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None, "the process has been started"
        return pid

    def serve(self, request: Request, kept: Kept, timeout_s: float) -> tuple[Reply, Kept]:
        """A client's reply, and what it keeps from now on. Time begins when the worker is ready.

        Raises:
            ClientError: the worker cannot be started.
        """
        self._await_start()
        answer = self._call((request, kept), timeout_s)
        if self._overdue:  # it answered and was killed in the same moment
            self.start_anew()
        match answer:
            case Reply(client_id=request.client_id) as reply, Kept() as after:
                return reply, after
        raise _Lost("the worker answered something else than it was asked")

    def start_anew(self) -> None:
        """Replaces the process, whether it is still there or not, unless the seat is given up."""
        with self._changing:
            if not self._dismissed:
                self.end()
                self._start()

    def dismiss(self) -> None:
        """Ends the process for good; who waits for its answer learns of it."""
        with self._changing:
            self._dismissed = True
            self._process.kill()

    def end(self) -> None:
        """Ends the process and frees what it leaves here."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _start(self) -> None:
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=serve_clients, args=(self._seat, theirs), daemon=True)
        with _signals_blocked():
            self._process.start()
        theirs.close()
        self._ready = False
        self._overdue = False

    def _await_start(self) -> None:
        for _ in range(_STARTS):
            if self._ready:
                return
            if self._dismissed:
                raise _Lost(_CLOSED)
            try:
                self._ready = isinstance(self._call(None, _START_SECONDS), Ready)
            except _Lost as lost:
                reason = str(lost)
                self.start_anew()
        if not self._ready:
            raise ClientError(
                f"a worker process failed to start {_STARTS} times: {reason}; its own message is on standard error. A "
                'script needs `if __name__ == "__main__":` around what it runs; `engine.kind = "inline"` needs none'
            )

    def _call(self, message: object, timeout_s: float) -> Any:
        """What the process sends next, after `message` where there is one."""
        with self._deadline(timeout_s):
            try:
                if message is not None:
                    self._pipe.send(message)
                answer = self._pipe.recv()
            except (EOFError, OSError):
                answer = None
            except Exception as error:  # damaged bytes raise nearly anything
                raise _Lost(f"the worker's answer cannot be read: {type(error).__name__}: {error}") from error
        if answer is None:
            raise _Lost(self._cause(timeout_s))
        if isinstance(answer, Raised) and answer.unwritable:
            raise CheckpointError(answer.unwritable)
        if isinstance(answer, Raised):
            raise _Lost(f"the worker raised {answer.text}")
        return answer

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kills the process when the block takes longer, which ends every send and receive in it."""
        process = self._process

        def end() -> None:
            self._overdue = True
            process.kill()

        alarm = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()
            alarm.join()

    def _cause(self, timeout_s: float) -> str:
        """Why the pipe is closed."""
        self._process.join(_JOIN_SECONDS)
        code = self._process.exitcode
        if self._overdue:
            return f"no answer within {timeout_s:g} s"
        if code is not None and code < 0:
            return f"the worker was ended by {signal.Signals(-code).name}, as it is when memory runs out"
        return f"the worker ended with exit code {code}"


def _devices(device: str, workers: int) -> list[str]:
    """The device of each worker: a numbered one is shared, `cuda` alone means all GPUs in turn."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{number % torch.cuda.device_count()}" for number in range(workers)]


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started inside never sees Ctrl-C or SIGTERM, which are for the one that runs the rounds."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
