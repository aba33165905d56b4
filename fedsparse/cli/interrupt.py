"""Ctrl-C and SIGTERM: the first asks to stop after the round, the second aborts at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "stop_requests"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nstopping after this round; once more to abort at once\n"


class StopRequest:
    """Becomes true with the first signal."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked

    def receive(self, _signal: int, _frame: FrameType | None) -> None:
        """The signal handler.

        Raises:
            KeyboardInterrupt: at the second signal.
        """
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        os.write(2, NOTICE)  # print is not safe here: the signal may have come in the middle of another print


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listens to the signals for the length of the block, then restores what was there."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
