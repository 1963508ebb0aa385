"""Stopping on request: the first SIGINT or SIGTERM asks for a checkpoint and an orderly end, the second ends it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process has been asked to stop, and by which signal; `promise` is what a person is told then."""

    def __init__(self, promise: str = "the next step is saved; a second signal does not wait for it") -> None:
        self.signal: int | None = None
        self._told = f"stopping: {promise}\n".encode()
        self._pid = os.getpid()

    def __call__(self) -> bool:
        """Whether a stop is asked for."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over in here; does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader process, which ends with this one
            return
        if self.signal is None:
            self.signal = number
            os.write(sys.stderr.fileno(), self._told)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)
